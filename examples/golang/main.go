// myapp says where it runs.
package main

import (
	"fmt"
	"os"
	"runtime"
	"time"
)

func main() {
	fmt.Printf("hello from %s on %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if _, err := os.Stat("/bin/sh"); err == nil {
		fmt.Println("shell: yes")
	} else {
		fmt.Println("shell: no")
	}
	if _, err := time.LoadLocation("Asia/Tokyo"); err == nil {
		fmt.Println("time zones: yes")
	} else {
		fmt.Println("time zones: no")
	}
}
