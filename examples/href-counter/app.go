// app counts the links of an HTML page: those that stay on its site and those that leave it.
//
// The page is read from the address in the variable url, or from standard input.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"golang.org/x/net/html"
)

func main() {
	page, err := open(os.Getenv("url"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
	defer page.Close()
	internal, external := count(page)
	fmt.Printf("{\"internal\":%d,\"external\":%d}\n", internal, external)
}

func open(address string) (io.ReadCloser, error) {
	if address == "" {
		return os.Stdin, nil
	}
	answer, err := http.Get(address)
	if err != nil {
		return nil, err
	}
	return answer.Body, nil
}

func count(page io.Reader) (internal, external int) {
	tokens := html.NewTokenizer(page)
	for {
		switch tokens.Next() {
		case html.ErrorToken:
			return internal, external
		case html.StartTagToken, html.SelfClosingTagToken:
			token := tokens.Token()
			if token.Data != "a" {
				continue
			}
			for _, attribute := range token.Attr {
				switch {
				case attribute.Key != "href":
				case strings.Contains(attribute.Val, "://"):
					external++
				default:
					internal++
				}
			}
		}
	}
}
