package volumes

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// chunkOfNames is how many names of one directory a worker takes at once.
const chunkOfNames = 64

// crew are workers for what is done to many files, at most as many as SetLimit says. Its Wait returns the first error.
type crew struct {
	errgroup.Group
	failed atomic.Bool
}

// spread does something in the background when there is a worker for it, and else at once; only then the error is
// returned, too. After a failure it does nothing.
func (c *crew) spread(wait *sync.WaitGroup, do func() error) error {
	wait.Add(1)
	done := func() error {
		defer wait.Done()
		if c.failed.Load() {
			return nil
		}
		err := do()
		if err != nil {
			c.failed.Store(true)
		}
		return err
	}
	if c.TryGo(done) {
		return nil
	}
	return done()
}
