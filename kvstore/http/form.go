package kvhttp

import (
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"stated.dev/stated/kvstore"
)

// The parameters of a request for keys. Others are ignored.
const (
	pValue = iota
	pTTL
	pDir
	pPrevExist
	pPrevIndex
	pPrevValue
	pRefresh
	pRecursive
	pSorted
	pQuorum
	pStream
	pNoValueOnSuccess
	pWait
	pWaitIndex
	params
)

func parameter(name string) (int, bool) {
	switch name {
	case "value":
		return pValue, true
	case "ttl":
		return pTTL, true
	case "dir":
		return pDir, true
	case "prevExist":
		return pPrevExist, true
	case "prevIndex":
		return pPrevIndex, true
	case "prevValue":
		return pPrevValue, true
	case "refresh":
		return pRefresh, true
	case "recursive":
		return pRecursive, true
	case "sorted":
		return pSorted, true
	case "quorum":
		return pQuorum, true
	case "stream":
		return pStream, true
	case "noValueOnSuccess":
		return pNoValueOnSuccess, true
	case "wait":
		return pWait, true
	case "waitIndex":
		return pWaitIndex, true
	}
	return 0, false
}

// form has the first value of each parameter. The zero form has none.
type form struct {
	given [params]bool
	value [params]string
}

// parse adds what an encoded form says; what the form has already stays. After an error it goes on, as the parser of
// net/url does: both accept the same forms with the same errors, but this one keeps only what is of use here.
func (f *form) parse(s string) (err error) {
	for s != "" {
		var field string
		field, s, _ = strings.Cut(s, "&")
		if field == "" {
			continue
		}
		if strings.IndexByte(field, ';') >= 0 {
			err = errSemicolon
			continue
		}
		name, value, _ := strings.Cut(field, "=")
		name, e := unescape(name)
		if e == nil {
			value, e = unescape(value)
		}
		if e != nil {
			if err == nil {
				err = e
			}
			continue
		}
		if p, known := parameter(name); known && !f.given[p] {
			f.given[p], f.value[p] = true, value
		}
	}
	return err
}

var errSemicolon = errors.New("invalid semicolon separator in query")

func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, nil
	}
	return url.QueryUnescape(s)
}

// readForm reads the parameters of a request: the body's come before the query's.
func readForm(f *form, r *http.Request, maxBody int64) error {
	var err error
	if r.Method == http.MethodPut || r.Method == http.MethodPost {
		err = readBody(f, r, maxBody)
	}
	if r.URL.RawQuery != "" {
		if e := f.parse(r.URL.RawQuery); err == nil {
			err = e
		}
	}
	return err
}

const formType = "application/x-www-form-urlencoded"

func readBody(f *form, r *http.Request, maxBody int64) error {
	kind := r.Header.Get("Content-Type")
	if kind == "" || r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	var typeErr error
	if kind != formType {
		kind, _, typeErr = mime.ParseMediaType(kind)
		if kind != formType {
			return typeErr
		}
	}
	if r.ContentLength > maxBody {
		return tooLarge(maxBody)
	}
	body, err := readAll(r.Body, r.ContentLength, maxBody)
	if err != nil {
		return err
	}
	if err := f.parse(body); typeErr == nil {
		return err
	}
	return typeErr
}

func tooLarge(limit int64) error { return fmt.Errorf("the body is larger than %d bytes", limit) }

// readAll reads a body whose size is known, or at most limit bytes of one whose size is not.
func readAll(body io.Reader, size, limit int64) (string, error) {
	if size >= 0 {
		// What is announced is not given memory before it has come.
		var b strings.Builder
		b.Grow(int(min(size, 64<<10)))
		if _, err := io.CopyN(&b, body, size); err != nil {
			return "", fmt.Errorf("read the body: %w", err)
		}
		return b.String(), nil
	}
	var b strings.Builder
	n, err := io.Copy(&b, io.LimitReader(body, limit+1))
	if err != nil {
		return "", fmt.Errorf("read the body: %w", err)
	}
	if n > limit {
		return "", tooLarge(limit)
	}
	return b.String(), nil
}

// keysRequest is a request for keys whose parameters are valid.
type keysRequest struct {
	value, prevValue                             string
	prevIndex, waitIndex                         uint64
	ttl                                          time.Duration
	hasTTL, hasPrevExist, prevExist              bool
	recursive, sorted, wait, dir, quorum, stream bool
	noValue, refresh                             bool
}

// maxTTL is the longest time to live, in seconds, that a clock in nanoseconds can hold: about 292 years.
const maxTTL = uint64(math.MaxInt64 / time.Second)

// parseKeys checks a request's parameters, in the order in which the API promises to name what is wrong.
func parseKeys(r *http.Request, maxBody int64) (q keysRequest, err *kvstore.Error) {
	if r.URL.RawQuery == "" && (r.Method == http.MethodGet || r.Method == http.MethodDelete || r.Method == http.MethodHead) {
		return q, nil
	}
	var f form
	if e := readForm(&f, r, maxBody); e != nil {
		return q, kvstore.NewError(kvstore.CodeInvalidForm, e.Error(), 0)
	}
	number := func(p int, name string) (n uint64) {
		if err != nil || !f.given[p] {
			return 0
		}
		n, e := strconv.ParseUint(f.value[p], 10, 64)
		if e != nil {
			err = kvstore.NewError(kvstore.CodeIndexNaN, `invalid value for "`+name+`"`, 0)
		}
		return n
	}
	boolean := func(p int, name string) (b bool) {
		if err != nil || !f.given[p] {
			return false
		}
		b, e := strconv.ParseBool(f.value[p])
		if e != nil {
			err = kvstore.NewError(kvstore.CodeInvalidField, "invalid value for "+name, 0)
		}
		return b
	}
	refuse := func(wrong bool, code int, cause string) {
		if err == nil && wrong {
			err = kvstore.NewError(code, cause, 0)
		}
	}
	q.prevIndex = number(pPrevIndex, "prevIndex")
	q.waitIndex = number(pWaitIndex, "waitIndex")
	q.recursive = boolean(pRecursive, `"recursive"`)
	q.sorted = boolean(pSorted, `"sorted"`)
	q.wait = boolean(pWait, `"wait"`)
	q.dir = boolean(pDir, `"dir"`)
	q.quorum = boolean(pQuorum, `"quorum"`)
	q.stream = boolean(pStream, `"stream"`)
	refuse(q.wait && r.Method != http.MethodGet, kvstore.CodeInvalidField, `"wait" can only be used with GET requests`)
	q.prevValue = f.value[pPrevValue]
	refuse(f.given[pPrevValue] && q.prevValue == "", kvstore.CodePrevValueMissing, `"prevValue" cannot be empty`)
	q.noValue = boolean(pNoValueOnSuccess, `"noValueOnSuccess"`)
	if ttl := f.value[pTTL]; ttl != "" {
		n, e := strconv.ParseUint(ttl, 10, 64)
		refuse(e != nil || n > maxTTL, kvstore.CodeTTLNaN, `invalid value for "ttl"`)
		q.ttl, q.hasTTL = time.Duration(n)*time.Second, true
	}
	q.hasPrevExist = f.given[pPrevExist]
	q.prevExist = boolean(pPrevExist, "prevExist")
	q.refresh = boolean(pRefresh, "refresh")
	q.value = f.value[pValue]
	refuse(q.refresh && q.value != "", kvstore.CodeRefreshValue, "A value was provided on a refresh")
	refuse(q.refresh && !q.hasTTL, kvstore.CodeRefreshTTL, "No TTL value set")
	return q, err
}

// command is the change that a request other than GET and HEAD asks for.
func (q *keysRequest) command(method, path string) kvstore.Command {
	c := kvstore.Command{Path: path, Dir: q.dir, Value: q.value, Refresh: q.refresh, PrevValue: q.prevValue, PrevIndex: q.prevIndex}
	if q.hasTTL {
		c.TTL = &q.ttl
	}
	compares := q.prevIndex > 0 || q.prevValue != ""
	switch {
	case method == http.MethodPost:
		c.Op, c.Unique = kvstore.OpCreate, true
	case method == http.MethodDelete && compares:
		c.Op = kvstore.OpCompareAndDelete
	case method == http.MethodDelete:
		c.Op, c.Recursive = kvstore.OpDelete, q.recursive
	case q.hasPrevExist && !q.prevExist:
		c.Op = kvstore.OpCreate
	case compares:
		c.Op = kvstore.OpCompareAndSwap
	case q.prevExist:
		c.Op = kvstore.OpUpdate
	default:
		c.Op = kvstore.OpSet
	}
	return c
}
