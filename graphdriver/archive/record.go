package archive

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc64"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/vbatts/tar-split/tar/storage"
)

const (
	chunkSize  = 128 << 10 // bytes of a file's contents that are copied at once
	chunkCount = 16        // chunks of one Reader under way
)

// recorder writes the tar-split record in a goroutine of its own: JSON lines, gzip, and the CRC-64 of each file.
type recorder struct {
	items chan item
	free  chan []byte // chunks that may be filled again
	done  chan struct{}
	err   error // valid after done
	over  bool  // items is closed
}

// An item is one step of the record. Exactly one of the three kinds is set.
type item struct {
	segment []byte // bytes to keep as they are
	chunk   []byte // next bytes of the current file's contents; goes back to the free list
	end     *fileEnd
}

// fileEnd closes the current file.
type fileEnd struct {
	name string
	size int64
}

func newRecorder(out io.Writer) *recorder {
	r := &recorder{
		items: make(chan item, chunkCount),
		free:  make(chan []byte, chunkCount),
		done:  make(chan struct{}),
	}
	for range chunkCount {
		r.free <- nil
	}
	go r.run(out, r.items)
	return r
}

func (r *recorder) run(out io.Writer, items <-chan item) {
	defer close(r.done)
	fail := func(err error) {
		if r.err == nil {
			r.err = err
		}
	}
	buffered := bufio.NewWriterSize(out, 64<<10)
	zip, err := gzip.NewWriterLevel(buffered, gzip.BestSpeed)
	if err != nil {
		fail(err)
	}
	packer := storage.NewJSONPacker(zip)
	table := crc64.MakeTable(crc64.ISO)
	var sum uint64
	for it := range items {
		var err error
		switch {
		case it.chunk != nil:
			if r.err == nil {
				sum = crc64.Update(sum, table, it.chunk)
			}
			r.free <- it.chunk[:cap(it.chunk)]
		case r.err != nil: // keep taking items, so that nobody waits for us
		case it.segment != nil:
			_, err = packer.AddEntry(storage.Entry{Type: storage.SegmentType, Payload: it.segment})
		default:
			e := storage.Entry{Type: storage.FileType, Size: it.end.size}
			e.SetName(it.end.name)
			if it.end.size > 0 {
				e.Payload = binary.BigEndian.AppendUint64(nil, sum)
			}
			sum = 0
			_, err = packer.AddEntry(e)
		}
		if err != nil {
			fail(err)
		}
	}
	if r.err != nil {
		return
	}
	if err := zip.Close(); err != nil {
		fail(err)
	}
	if err := buffered.Flush(); err != nil {
		fail(err)
	}
}

// close waits until everything is written.
func (r *recorder) close() error {
	if !r.over {
		r.over = true
		close(r.items)
	}
	<-r.done
	if r.err != nil {
		return fmt.Errorf("record the layout of the tar: %w", r.err)
	}
	return nil
}
