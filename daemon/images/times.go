package images

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// timeForms are the forms of a point in time that Docker's filters take, besides Unix seconds and durations.
// Forms without a zone are local time.
var timeForms = [...]string{
	time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04Z07:00", "2006-01-02T15:04",
	"2006-01-02T15Z07:00", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02",
}

// parseTime reads a point in time: Unix seconds with an optional fraction, a duration before now, or a date.
func parseTime(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	if t, ok := parseSeconds(text); ok {
		return t, nil
	}
	for _, form := range timeForms {
		if t, err := time.ParseInLocation(form, text, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("failed to parse value as time or duration: %q", text))
}

func parseSeconds(text string) (time.Time, bool) {
	whole, fraction, _ := strings.Cut(text, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || seconds > math.MaxInt64/int64(time.Second) {
		return time.Time{}, false
	}
	if fraction == "" {
		return time.Unix(seconds, 0), true
	}
	digits := (fraction + "000000000")[:9]
	nanos, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || nanos < 0 {
		return time.Time{}, false
	}
	return time.Unix(seconds, nanos), true
}
