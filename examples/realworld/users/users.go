// Package users knows who may write.
package users

import (
	"net/http"

	"example.com/realworld/common"
)

// Register creates the table with its first users and serves it.
func Register(router *http.ServeMux, database *common.Database) error {
	if _, err := database.Query("CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY)"); err != nil {
		return err
	}
	for _, name := range []string{"ana", "ken"} {
		if _, err := database.Query("INSERT OR IGNORE INTO users VALUES (?)", name); err != nil {
			return err
		}
	}
	router.HandleFunc("/api/users", func(response http.ResponseWriter, _ *http.Request) {
		rows, err := database.Query("SELECT name FROM users ORDER BY name")
		names := []string{}
		for _, row := range rows {
			names = append(names, row[0])
		}
		common.Answer(response, names, err)
	})
	return nil
}
