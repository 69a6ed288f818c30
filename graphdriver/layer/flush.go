package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A flusher lets callers that arrive while one flush runs share the next.
type flusher struct {
	run func() error

	mu   sync.Mutex // guards next
	next *flushRound
	turn sync.Mutex // held while a flush runs
}

type flushRound struct {
	done chan struct{}
	err  error
}

// wait returns once a flush that began after the call has ended.
func (f *flusher) wait() error {
	f.mu.Lock()
	if r := f.next; r != nil {
		f.mu.Unlock()
		<-r.done
		return r.err
	}
	r := &flushRound{done: make(chan struct{})}
	f.next = r
	f.mu.Unlock()

	f.turn.Lock()
	f.mu.Lock()
	f.next = nil // whoever comes from now on needs another
	f.mu.Unlock()
	r.err = f.run()
	f.turn.Unlock()
	close(r.done)
	return r.err
}

// syncContents makes the driver's files durable, and the files in tmp.
func (s *Store) syncContents() error {
	s.flushes.Add(1)
	if err := s.driver.Sync(context.Background()); err != nil {
		return err
	}
	d, err := os.Open(s.tmp())
	if err != nil {
		return fmt.Errorf("flush layer records: %w", err)
	}
	// Where driver and records share a file system, which is nearly always, nothing is left to be written.
	if err := errors.Join(unix.Syncfs(int(d.Fd())), d.Close()); err != nil {
		return fmt.Errorf("flush layer records: %w", err)
	}
	return nil
}

// syncRecords makes renames in the directory of the layers' records durable.
func (s *Store) syncRecords() error {
	s.flushes.Add(1)
	d, err := os.Open(s.chains())
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return fmt.Errorf("flush the directory of layers: %w", err)
	}
	return nil
}
