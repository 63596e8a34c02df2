// The client sends names to the server and prints the greetings.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"os"
)

func main() {
	server := flag.String("server", "127.0.0.1:7171", "address of the server")
	flag.Parse()

	connection, err := net.Dial("tcp", *server)
	if err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
	defer connection.Close()
	answers := bufio.NewScanner(connection)
	for _, name := range flag.Args() {
		fmt.Fprintln(connection, name)
		if !answers.Scan() {
			fmt.Fprintln(os.Stderr, "client: the server hung up")
			os.Exit(1)
		}
		fmt.Println(answers.Text())
	}
}
