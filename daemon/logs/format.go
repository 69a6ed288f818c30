package logs

import (
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

// Record is one line of output, or a part of a line that was longer than what is kept in one record.
type Record struct {
	Stream string // "stdout" or "stderr"
	Time   time.Time
	Line   []byte // with its newline, if it had one
	Attrs  map[string]string
}

// An encoder appends one encoded record to dst. It belongs to one writer.
type encoder interface {
	append(dst []byte, stream string, t time.Time, line []byte) ([]byte, error)
}

// A format takes records apart again. It has no state.
type format interface {
	// next decodes the first record in buf and returns how many bytes it took. It takes 0 bytes when the record is not
	// complete. When ok is false the bytes taken hold no record that can be read and are to be passed over; errLost says
	// that no further record can be found in this file.
	next(buf []byte) (rec Record, taken int, ok bool, err error)
	// tail finds where the last want complete records of the first size bytes of r begin, and how many there are.
	tail(r io.ReaderAt, size int64, want int) (offset int64, found int, err error)
	// intact returns the length of the part of the first size bytes of r that ends with a complete record.
	intact(r io.ReaderAt, size int64) (int64, error)
}

// errLost ends the reading of one damaged file.
var errLost = fmt.Errorf("log file is damaged: %w", errdefs.ErrDataLoss)

func (o Options) encoder() (encoder, error) {
	switch o.Driver {
	case JSONFile:
		return newJSONEncoder(o.Attrs)
	case Local:
		return newLocalEncoder(o.Attrs), nil
	}
	return nil, invalid("logger: no log driver named '%s' is registered", o.Driver)
}

func (o Options) format() (format, error) {
	switch o.Driver {
	case JSONFile:
		return jsonFormat{}, nil
	case Local:
		return localFormat{}, nil
	case None:
		return nil, errdefs.ErrNotImplemented.WithMessage("configured logging driver does not support reading")
	}
	return nil, invalid("logger: no log driver named '%s' is registered", o.Driver)
}
