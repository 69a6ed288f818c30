package kvstore

// Watcher delivers events. Close it when nobody reads it any more.
type Watcher struct{}

// Events returns the channel of events. It is closed when the watcher has ended; Reason then says why.
func (w *Watcher) Events() <-chan *Event { panic("not yet") }

// StartIndex is the store's index when the watch began.
func (w *Watcher) StartIndex() uint64 { panic("not yet") }

// Close ends the watch. It may be called more than once, and while events arrive.
func (w *Watcher) Close() { panic("not yet") }

// Reason says why the channel was closed: nil while it is open, after Close, and after a one-shot watcher's event;
// ErrSlowWatcher when the reader was too slow; an *Error with code 400 when the store was restored to a state that the
// watcher cannot follow.
func (w *Watcher) Reason() error { panic("not yet") }
