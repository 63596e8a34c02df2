package common

import (
	"encoding/json"
	"net/http"
)

// Answer writes a value, or the error that kept it from being, as JSON.
func Answer(response http.ResponseWriter, value any, err error) {
	response.Header().Set("Content-Type", "application/json")
	if err != nil {
		response.WriteHeader(http.StatusInternalServerError)
		value = map[string]string{"error": err.Error()}
	}
	json.NewEncoder(response).Encode(value)
}
