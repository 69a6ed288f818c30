package images

import (
	"fmt"
	"strings"
)

// expander replaces variables and quotes in the words of a Dockerfile instruction.
//
// Outside quotes and in double quotes, $name and ${name} stand for a variable's value, ${name:-text} and
// ${name:+text} for text when the variable is unset or set. A backslash keeps the next character as it is.
type expander struct {
	env func(name string) (value string, set bool)
}

// word expands one word.
func (e expander) word(text string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(text); {
		switch c := text[i]; c {
		case '\'':
			end := strings.IndexByte(text[i+1:], '\'')
			if end < 0 {
				return "", fmt.Errorf("unexpected end of statement while looking for matching single-quote")
			}
			out.WriteString(text[i+1 : i+1+end])
			i += end + 2
		case '"':
			n, err := e.quoted(text[i+1:], &out)
			if err != nil {
				return "", err
			}
			i += n + 1
		case '\\':
			if i+1 < len(text) {
				out.WriteByte(text[i+1])
			}
			i += 2
		case '$':
			n, err := e.variable(text[i:], &out)
			if err != nil {
				return "", err
			}
			i += n
		default:
			out.WriteByte(c)
			i++
		}
	}
	return out.String(), nil
}

// quoted expands the inside of double quotes and returns how many bytes it took, the closing quote included.
func (e expander) quoted(text string, out *strings.Builder) (int, error) {
	for i := 0; i < len(text); {
		switch c := text[i]; c {
		case '"':
			return i + 1, nil
		case '\\':
			if i+1 < len(text) {
				if next := text[i+1]; next != '"' && next != '$' && next != '\\' {
					out.WriteByte('\\')
				}
				out.WriteByte(text[i+1])
			}
			i += 2
		case '$':
			n, err := e.variable(text[i:], out)
			if err != nil {
				return 0, err
			}
			i += n
		default:
			out.WriteByte(c)
			i++
		}
	}
	return 0, fmt.Errorf("unexpected end of statement while looking for matching double-quote")
}

// variable expands the variable that text, beginning with a dollar sign, begins with, and returns its length.
func (e expander) variable(text string, out *strings.Builder) (int, error) {
	if !strings.HasPrefix(text, "${") {
		name := variableName(text[1:])
		if name == "" {
			out.WriteByte('$')
			return 1, nil
		}
		value, _ := e.env(name)
		out.WriteString(value)
		return 1 + len(name), nil
	}
	end, err := closingBrace(text)
	if err != nil {
		return 0, err
	}
	inside := text[2:end]
	name := variableName(inside)
	if name == "" {
		return 0, fmt.Errorf("bad substitution: %s", text[:end+1])
	}
	value, set := e.env(name)
	set = set && value != ""
	operator, word := inside[len(name):], ""
	if len(operator) > 2 {
		operator, word = operator[:2], operator[2:]
	}
	switch {
	case operator == "":
	case operator == ":-" && !set, operator == ":+" && set:
		if value, err = e.word(word); err != nil {
			return 0, err
		}
	case operator == ":+":
		value = ""
	case operator == ":-":
	default:
		return 0, fmt.Errorf("unsupported modifier (%s) in substitution", strings.TrimPrefix(operator, ":"))
	}
	out.WriteString(value)
	return end + 1, nil
}

// closingBrace returns where the brace closes that text, beginning with "${", opens.
func closingBrace(text string) (int, error) {
	depth := 0
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '{':
			depth++
			if depth > maxNesting {
				return 0, fmt.Errorf("substitution is nested too deeply")
			}
		case '}':
			if depth--; depth == 0 {
				return i, nil
			}
		}
	}
	return 0, fmt.Errorf("syntax error: missing '}' in %s", text)
}

// maxNesting bounds the substitutions inside substitutions.
const maxNesting = 32

// variableName returns the name that text begins with, or nothing.
func variableName(text string) string {
	for i := range len(text) {
		c := text[i]
		letter := c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
		if !letter && (i == 0 || c < '0' || c > '9') {
			return text[:i]
		}
	}
	return text
}

// splitWords cuts text at white space outside quotes. Quotes and backslashes stay, for the expander.
func splitWords(text string) []string {
	var words []string
	start, quote := -1, byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		blank := c == ' ' || c == '\t' || c == '\n' || c == '\r'
		switch {
		case quote == 0 && blank:
			if start >= 0 {
				words = append(words, text[start:i])
				start = -1
			}
			continue
		case c == '\\' && quote != '\'':
			if start < 0 {
				start = i
			}
			i++
			continue
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case c == quote:
			quote = 0
		}
		if start < 0 {
			start = i
		}
	}
	if start >= 0 {
		words = append(words, text[start:])
	}
	return words
}
