// Package jsonquote writes strings as JSON, byte for byte as others do it, without going through encoding/json.
package jsonquote

import "unicode/utf8"

// Style says which characters are escaped, and how: for each that is not plain, the letter behind the backslash.
type Style [utf8.RuneSelf]byte

// code is the letter of \u00XX.
const code = 'u'

// Escaping returns a style that escapes what encoding/json does, the characters that matter to HTML among them. The given
// control characters have their short form (\b, \f, \n, \r, \t), others are \u00XX.
func Escaping(short string) *Style {
	var s Style
	for c := range byte(' ') {
		s[c] = code
	}
	for _, c := range []byte("<>&") {
		s[c] = code
	}
	s['"'], s['\\'] = '"', '\\'
	for _, c := range []byte(short) {
		s[c] = map[byte]byte{'\b': 'b', '\f': 'f', '\n': 'n', '\r': 'r', '\t': 't'}[c]
	}
	return &s
}

// Append appends s to dst, quoted. Each byte that is no UTF-8 becomes \ufffd; U+2028 and U+2029 are escaped.
func Append[S []byte | string](dst []byte, s S, style *Style) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	done := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			letter := style[c]
			if letter == 0 {
				i++
				continue
			}
			dst = append(append(dst, s[done:i]...), '\\', letter)
			if letter == code {
				dst = append(dst, '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			done = i
			continue
		}
		// The slice is short, so that a conversion of a string or of bytes costs the same.
		r, size := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(append(dst, s[done:i]...), `\ufffd`...)
			done = i + size
		case r == '\u2028' || r == '\u2029':
			dst = append(append(dst, s[done:i]...), `\u202`...)
			dst = append(dst, hex[r&15])
			done = i + size
		}
		i += size
	}
	return append(append(dst, s[done:]...), '"')
}
