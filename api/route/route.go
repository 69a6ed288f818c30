// Package route is what every resource router needs and the server serves: routes, and the reading and writing of
// requests in Docker's manner. It knows no resource.
package route

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"stated.dev/stated/internal/filters"
)

// Handler answers one request. An error it returns before it has written anything becomes a JSON body
// {"message": ...} with the status of the error's class; see api/server.
type Handler func(w http.ResponseWriter, r *http.Request) error

// A Route binds a handler to a method and a net/http pattern path without version prefix, e.g. "/volumes/{name}".
type Route struct {
	Method  string
	Path    string
	Handler Handler
}

// Bounds of the API versions served. Docker 28.5 serves the same.
const (
	DefaultVersion = "1.51"
	MinVersion     = "1.24"
)

type versionKey struct{}

// WithVersion returns ctx carrying the API version that a request asked for.
func WithVersion(ctx context.Context, version string) context.Context {
	return context.WithValue(ctx, versionKey{}, version)
}

// Version returns the API version a request asked for: the one in its path, or DefaultVersion.
func Version(ctx context.Context) string {
	if v, ok := ctx.Value(versionKey{}).(string); ok {
		return v
	}
	return DefaultVersion
}

// VersionBefore reports whether the request's API version is older than version.
func VersionBefore(ctx context.Context, version string) bool {
	return CompareVersions(Version(ctx), version) < 0
}

// CompareVersions compares two versions of the form MAJOR.MINOR by number, not by text.
func CompareVersions(a, b string) int {
	aMajor, aMinor, _ := strings.Cut(a, ".")
	bMajor, bMinor, _ := strings.Cut(b, ".")
	if d := number(aMajor) - number(bMajor); d != 0 {
		return d
	}
	return number(aMinor) - number(bMinor)
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // what is no number sorts first
	return n
}

// Bool reads a query parameter as Docker does: "", 0, no, false and none (any case) are false, all else true.
func Bool(r *http.Request, name string) bool {
	return boolText(r.URL.Query().Get(name))
}

// BoolOr is Bool with a value for a parameter that was not given.
func BoolOr(r *http.Request, name string, fallback bool) bool {
	if !r.URL.Query().Has(name) {
		return fallback
	}
	return Bool(r, name)
}

func boolText(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// Int reads a query parameter as a number, or returns fallback when it is absent.
func Int(r *http.Request, name string, fallback int) (int, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid value for %s: %q is not a number", name, s))
	}
	return n, nil
}

// Filters reads the filters parameter.
func Filters(r *http.Request) (filters.Args, error) {
	return filters.Parse(r.URL.Query().Get("filters"))
}

// maxBody bounds a JSON request body.
const maxBody = 16 << 20

// Decode reads the JSON body of r into v. The body must be there and be JSON.
func Decode(r *http.Request, v any) error {
	return decode(r, v, false)
}

// DecodeOptional is Decode, but leaves v alone when there is no body.
func DecodeOptional(r *http.Request, v any) error {
	return decode(r, v, true)
}

func decode(r *http.Request, v any, optional bool) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage("read request body: " + err.Error())
	}
	switch {
	case len(body) > maxBody:
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("request body is larger than %d bytes", maxBody))
	case len(bytes.TrimSpace(body)) == 0 && optional:
		return nil
	}
	if err := CheckJSONContentType(r); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return errdefs.ErrInvalidArgument.WithMessage("invalid JSON: got EOF while reading request body")
		}
		return errdefs.ErrInvalidArgument.WithMessage("invalid JSON: " + err.Error())
	}
	if dec.More() {
		return errdefs.ErrInvalidArgument.WithMessage("unexpected content after JSON")
	}
	return nil
}

// CheckJSONContentType refuses a body that does not say it is JSON.
func CheckJSONContentType(r *http.Request) error {
	ct := r.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(ct); err == nil && media == "application/json" {
		return nil
	}
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("unsupported Content-Type header (%s): must be 'application/json'", ct))
}

// WriteJSON answers with status and v as JSON.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// NotBuilt is the handler of an endpoint that does not exist yet. It answers 501 and names the operation.
func NotBuilt(operation string) Handler {
	return func(http.ResponseWriter, *http.Request) error {
		return errdefs.ErrNotImplemented.WithMessage(operation + " is not built yet in stated")
	}
}

// WriteRaw answers with status and data, which is JSON already.
func WriteRaw(w http.ResponseWriter, status int, data json.RawMessage) error {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(data)+1))
	w.WriteHeader(status)
	if _, err := w.Write(data); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// WriteRawList answers 200 with the array of items, each of which is JSON already.
func WriteRawList(w http.ResponseWriter, items []json.RawMessage) error {
	size := len("[]\n") + max(len(items)-1, 0)
	for _, item := range items {
		size += len(item)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(size))

	// Through a buffer that stays in the cache: a list may have megabytes.
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	room := len(buf) - len(",]\n")
	out := append(buf[:0], '[')
	for i, item := range items {
		if i > 0 {
			out = append(out, ',')
		}
		if len(out)+len(item) > room {
			if _, err := w.Write(out); err != nil {
				return err
			}
			out = buf[:0]
		}
		if len(item) > room {
			if _, err := w.Write(item); err != nil {
				return err
			}
			continue
		}
		out = append(out, item...)
	}
	_, err := w.Write(append(out, "]\n"...))
	return err
}

// Uint32 reads a query parameter that must be given and be a number.
func Uint32(r *http.Request, name string) (uint32, error) {
	n, err := strconv.ParseUint(r.URL.Query().Get(name), 10, 32)
	if err != nil {
		return 0, errors.Unwrap(err)
	}
	return uint32(n), nil
}
