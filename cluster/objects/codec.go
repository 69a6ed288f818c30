package objects

import (
	"encoding/json"
	"errors"
	"fmt"
)

// formatVersion is the first byte of an encoded object.
const formatVersion = 1

var errVersion = errors.New("a later version of stated wrote it")

// Append appends the encoded object to b.
func Append(b []byte, o Object) ([]byte, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return b, fmt.Errorf("encode %s %s: %w", o.Kind(), o.Head().ID, err)
	}
	b = append(b, formatVersion)
	return append(b, data...), nil
}

// Decode reads an object of a kind that is known. It keeps no reference to b.
func Decode(k Kind, b []byte) (Object, error) {
	o := k.New()
	switch {
	case o == nil:
		return nil, fmt.Errorf("decode an object: there is no %s", k)
	case len(b) == 0:
		return nil, fmt.Errorf("decode a %s: it is empty", k)
	case b[0] != formatVersion:
		return nil, fmt.Errorf("decode a %s of version %d: %w", k, b[0], errVersion)
	}
	if err := json.Unmarshal(b[1:], o); err != nil {
		return nil, fmt.Errorf("decode a %s: %w", k, err)
	}
	return o, nil
}
