// The server greets whoever sends it a name, one a line.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"os"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:7171", "address to listen on")
	once := flag.Bool("once", false, "stop after the first client")
	flag.Parse()

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
	fmt.Println("listening on", listener.Addr())
	for {
		client, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		if *once {
			greet(client)
			return
		}
		go greet(client)
	}
}

func greet(client net.Conn) {
	defer client.Close()
	names := bufio.NewScanner(client)
	for names.Scan() {
		fmt.Fprintf(client, "hello, %s\n", names.Text())
	}
}
