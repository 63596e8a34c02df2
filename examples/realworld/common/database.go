// Package common holds what users and articles share: the database and JSON answers.
package common

/*
#cgo LDFLAGS: -l:libsqlite3.a -lm
#include <stdlib.h>
#include <sqlite3.h>

// SQLITE_TRANSIENT is a cast that cgo cannot call.
static int bind_text(sqlite3_stmt *statement, int index, const char *text) {
	return sqlite3_bind_text(statement, index, text, -1, SQLITE_TRANSIENT);
}
*/
import "C"

import (
	"errors"
	"sync"
	"unsafe"
)

// Database is one SQLite connection; its methods may be called from many goroutines.
type Database struct {
	mutex  sync.Mutex
	handle *C.sqlite3
}

// Version returns the version of the SQLite library that is linked in.
func Version() string {
	return C.GoString(C.sqlite3_libversion())
}

// Open opens or creates the database of a path.
func Open(path string) (*Database, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	database := &Database{}
	if C.sqlite3_open(name, &database.handle) != C.SQLITE_OK {
		return nil, database.problem()
	}
	return database, nil
}

// Close releases the connection.
func (database *Database) Close() {
	C.sqlite3_close(database.handle)
}

// Query runs one statement with text parameters and returns its rows as text.
func (database *Database) Query(text string, parameters ...string) ([][]string, error) {
	database.mutex.Lock()
	defer database.mutex.Unlock()
	source := C.CString(text)
	defer C.free(unsafe.Pointer(source))
	var statement *C.sqlite3_stmt
	if C.sqlite3_prepare_v2(database.handle, source, -1, &statement, nil) != C.SQLITE_OK {
		return nil, database.problem()
	}
	defer C.sqlite3_finalize(statement)
	for index, parameter := range parameters {
		value := C.CString(parameter)
		C.bind_text(statement, C.int(index+1), value)
		C.free(unsafe.Pointer(value))
	}
	rows := [][]string{}
	for {
		switch C.sqlite3_step(statement) {
		case C.SQLITE_DONE:
			return rows, nil
		case C.SQLITE_ROW:
			row := make([]string, int(C.sqlite3_column_count(statement)))
			for column := range row {
				cell := C.sqlite3_column_text(statement, C.int(column))
				row[column] = C.GoString((*C.char)(unsafe.Pointer(cell)))
			}
			rows = append(rows, row)
		default:
			return nil, database.problem()
		}
	}
}

func (database *Database) problem() error {
	return errors.New(C.GoString(C.sqlite3_errmsg(database.handle)))
}
