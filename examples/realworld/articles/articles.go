// Package articles keeps what users write.
package articles

import (
	"net/http"

	"example.com/realworld/common"
)

// Article is one article as it is answered.
type Article struct {
	Author string `json:"author"`
	Title  string `json:"title"`
}

// Register creates the table and serves it.
func Register(router *http.ServeMux, database *common.Database) error {
	const table = "CREATE TABLE IF NOT EXISTS articles (author TEXT REFERENCES users, title TEXT)"
	if _, err := database.Query(table); err != nil {
		return err
	}
	router.HandleFunc("/api/articles", func(response http.ResponseWriter, request *http.Request) {
		if request.Method == http.MethodPost {
			author, title := request.FormValue("author"), request.FormValue("title")
			_, err := database.Query("INSERT INTO articles VALUES (?, ?)", author, title)
			common.Answer(response, Article{author, title}, err)
			return
		}
		rows, err := database.Query("SELECT author, title FROM articles ORDER BY rowid")
		found := []Article{}
		for _, row := range rows {
			found = append(found, Article{row[0], row[1]})
		}
		common.Answer(response, found, err)
	})
	return nil
}
