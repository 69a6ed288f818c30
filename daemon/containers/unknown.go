package containers

import (
	"encoding/json"
	"strings"
)

// unknownFields returns the members of a JSON object whose names are not in known. The document must be valid: it has
// been decoded before. The usual answer, none, costs one pass over the bytes and no allocation.
func unknownFields(doc []byte, known map[string]bool) map[string]json.RawMessage {
	var unknown map[string]json.RawMessage
	i := skipSpace(doc, 0)
	if i >= len(doc) || doc[i] != '{' {
		return nil
	}
	i++
	for {
		i = skipSpace(doc, i)
		if i >= len(doc) || doc[i] != '"' {
			return unknown // the end of the object
		}
		end := skipString(doc, i)
		name := doc[i:end]
		i = skipSpace(doc, end) + 1 // the colon
		i = skipSpace(doc, i)
		value := i
		i = skipValue(doc, i)
		if !isKnown(name, known) {
			var text string
			if json.Unmarshal(name, &text) == nil && !known[strings.ToLower(text)] {
				if unknown == nil {
					unknown = map[string]json.RawMessage{}
				}
				unknown[text] = append(json.RawMessage(nil), doc[value:i]...)
			}
		}
		i = skipSpace(doc, i)
		if i >= len(doc) || doc[i] != ',' {
			return unknown
		}
		i++
	}
}

// isKnown looks a quoted name up as it is written. Names in other cases, or with escapes, are looked at again.
func isKnown(quoted []byte, known map[string]bool) bool {
	return known[string(quoted[1:len(quoted)-1])]
}

func skipSpace(doc []byte, i int) int {
	for i < len(doc) && (doc[i] == ' ' || doc[i] == '\n' || doc[i] == '\t' || doc[i] == '\r') {
		i++
	}
	return i
}

// skipString returns the index behind the string that begins at i.
func skipString(doc []byte, i int) int {
	for i++; i < len(doc); i++ {
		switch doc[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(doc)
}

// skipValue returns the index behind the value that begins at i.
func skipValue(doc []byte, i int) int {
	depth := 0
	for i < len(doc) {
		switch doc[i] {
		case '"':
			i = skipString(doc, i) - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // the object that the value is in
			}
			depth--
		case ',':
			if depth == 0 {
				return i
			}
		}
		i++
		if depth == 0 && i < len(doc) && (doc[i-1] == '"' || doc[i-1] == '}' || doc[i-1] == ']') {
			return i
		}
	}
	return len(doc)
}
