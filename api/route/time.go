package route

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// layouts are the forms of a date that clients send, the one with a zone and the one without.
var layouts = [...]string{
	time.RFC3339Nano,
	"2006-01-02T15:04:05.999999999",
	"2006-01-02T15:04Z07:00",
	"2006-01-02T15:04",
	"2006-01-02T15Z07:00",
	"2006-01-02T15",
	"2006-01-02Z07:00",
	"2006-01-02",
}

// Time reads a query parameter as ParseTime does. The zero time stands for a parameter that was not given.
func Time(r *http.Request, name string) (time.Time, error) {
	t, err := ParseTime(r.URL.Query().Get(name), time.Now())
	if err != nil {
		return time.Time{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid value for %s: %v", name, err))
	}
	return t, nil
}

// ParseTime reads a moment as Docker's clients write it: seconds since 1970 with an optional fraction
// ("1136073600.000000001"), a date in RFC 3339 or a shorter form of it, taken as local to now when it has no zone, or
// a Go duration, which counts back from now. The empty string is the zero time.
func ParseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, ok := parseSeconds(s); ok {
		return t, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("failed to parse value as time or duration: %q", s)
}

// parseSeconds reads SECONDS[.FRACTION], the fraction being decimal and cut after nine digits.
func parseSeconds(s string) (time.Time, bool) {
	whole, fraction, _ := strings.Cut(s, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	if len(fraction) > 9 {
		fraction = fraction[:9]
	}
	var nanos int64
	for i := range 9 {
		nanos *= 10
		if i >= len(fraction) {
			continue
		}
		if fraction[i] < '0' || fraction[i] > '9' {
			return time.Time{}, false
		}
		nanos += int64(fraction[i] - '0')
	}
	return time.Unix(seconds, nanos), true
}
