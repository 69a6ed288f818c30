// Package types holds what Docker API 1.51 has on the wire and the current types module has dropped or changed.
package types

import (
	"encoding/json"
	"errors"

	"github.com/moby/moby/api/types/container"
)

// ContainerConfig is container.Config with what API 1.51 still has of it.
type ContainerConfig struct {
	container.Config
	MacAddress string   `json:",omitempty"`
	OnBuild    []string // written when empty, too
}

// StringOrSlice reads a JSON string or an array of strings, as Cmd and Entrypoint may be written.
type StringOrSlice []string

// UnmarshalJSON implements json.Unmarshaler.
func (s *StringOrSlice) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		*s = nil
		return nil
	}
	var list []string
	if err := json.Unmarshal(data, &list); err == nil {
		*s = list
		return nil
	}
	var one string
	if err := json.Unmarshal(data, &one); err != nil {
		return errors.New("neither a string nor an array of strings")
	}
	*s = StringOrSlice{one}
	return nil
}

// ErrNotModified says that an operation found nothing to do: the server answers 304 without a body.
var ErrNotModified = errors.New("not modified")

// ErrorResponse is the body of every error.
type ErrorResponse struct {
	Message string `json:"message"`
}
