// realworld is a small service over SQLite: users who write articles, as JSON over HTTP.
//
//	GET  /api/users
//	GET  /api/articles
//	POST /api/articles?author=NAME&title=TITLE
package main
