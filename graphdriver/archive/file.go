package archive

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// fileWriter writes a new file and leaves holes where long runs of zeros would be.
type fileWriter struct {
	fd   int
	off  int64
	hole bool // the file ends in a hole that is not yet part of its size
}

var zeros [chunkSize]byte // never written to

// minHole is the shortest run of zeros that is worth the look for it.
const minHole = 32 << 10

func (w *fileWriter) Write(p []byte) (int, error) {
	if len(p) >= minHole && p[0] == 0 && p[len(p)-1] == 0 && bytes.Equal(p, zeros[:len(p)]) {
		w.off += int64(len(p))
		w.hole = true
		return len(p), nil
	}
	for done := 0; done < len(p); {
		n, err := unix.Pwrite(w.fd, p[done:], w.off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
		w.off += int64(n)
	}
	w.hole = false
	return len(p), nil
}

func (w *fileWriter) end() error {
	if !w.hole {
		return nil
	}
	return unix.Ftruncate(w.fd, w.off)
}
