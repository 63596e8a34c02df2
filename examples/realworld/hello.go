package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"example.com/realworld/articles"
	"example.com/realworld/common"
	"example.com/realworld/users"
)

func main() {
	listen := flag.String("listen", ":8080", "address to listen on")
	check := flag.Bool("check", false, "ask the service a few questions, print the answers, stop")
	flag.Parse()
	if err := run(*listen, *check); err != nil {
		fmt.Fprintln(os.Stderr, "realworld:", err)
		os.Exit(1)
	}
}

func run(listen string, check bool) error {
	database, err := common.Open(":memory:")
	if err != nil {
		return err
	}
	defer database.Close()
	router := http.NewServeMux()
	if err := users.Register(router, database); err != nil {
		return err
	}
	if err := articles.Register(router, database); err != nil {
		return err
	}
	if check {
		listen = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	if !check {
		fmt.Println("listening on", listener.Addr(), "with SQLite", common.Version())
		return http.Serve(listener, router)
	}
	go http.Serve(listener, router)
	return ask("http://" + listener.Addr().String())
}

func ask(service string) error {
	post, err := http.Post(service+"/api/articles?author=ana&title=Overlapping+planks", "", strings.NewReader(""))
	if err != nil {
		return err
	}
	post.Body.Close()
	for _, path := range []string{"/api/users", "/api/articles"} {
		answer, err := http.Get(service + path)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
		fmt.Printf("%s %s", path, body)
	}
	return nil
}
