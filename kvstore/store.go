package kvstore

import "time"

// Options are a store's settings. The zero value of each is its default.
type Options struct {
	Namespaces    []string         // directories that exist from the start and that, as the root, cannot be written
	HistoryEvents int              // how many past events are kept; 1000
	HistoryBytes  int64            // how many bytes of them; 64 MiB. All replicas must have the same two limits.
	WatchBuffer   int              // how many events wait for a watcher before it is cut; 100
	MaxKey        int              // longest path in bytes; 0 for no limit
	MaxDepth      int              // most elements of a path; 0 for no limit
	MaxValue      int              // longest value in bytes; 0 for no limit
	Now           func() time.Time // for the time to live in answers only; time.Now
}

// Store is the tree with its history and watchers. Its methods may be called from any goroutine.
type Store struct{}

// New returns an empty store. It keeps nothing of the options but their values.
func New(o Options) *Store { panic("not yet") }

// Get returns the key or directory at path. It never waits for a change.
func (s *Store) Get(path string, r GetRequest) (*Event, error) { panic("not yet") }

// Watch begins to watch path. When the history of r.Since is gone it returns an *Error with code 401.
func (s *Store) Watch(path string, r WatchRequest) (*Watcher, error) { panic("not yet") }

// Check says whether a command keeps the limits of Options. Do does so itself; a replica does before it proposes, not
// when it applies, so that hosts with different limits stay equal.
func (s *Store) Check(c Command) error { panic("not yet") }

// Do carries out a command. An error is always an *Error, and leaves the tree as it was. OpExpire returns the last of its
// events, or nil when no key was due.
func (s *Store) Do(c Command) (*Event, error) { panic("not yet") }

// Index returns the store's index: the number of changes so far.
func (s *Store) Index() uint64 { panic("not yet") }

// Time returns the store's clock: the latest Time of a command.
func (s *Store) Time() time.Time { panic("not yet") }

// Stats returns the counters.
func (s *Store) Stats() Stats { panic("not yet") }

// NextExpiry returns when the next key is due, if any key is.
func (s *Store) NextExpiry() (time.Time, bool) { panic("not yet") }

// Stats are the store's counters, since it was made or as they were restored. The JSON form has the API's names and order.
type Stats struct {
	GetSuccess              uint64 `json:"getsSuccess"`
	GetFail                 uint64 `json:"getsFail"`
	SetSuccess              uint64 `json:"setsSuccess"`
	SetFail                 uint64 `json:"setsFail"`
	DeleteSuccess           uint64 `json:"deleteSuccess"`
	DeleteFail              uint64 `json:"deleteFail"`
	UpdateSuccess           uint64 `json:"updateSuccess"`
	UpdateFail              uint64 `json:"updateFail"`
	CreateSuccess           uint64 `json:"createSuccess"`
	CreateFail              uint64 `json:"createFail"`
	CompareAndSwapSuccess   uint64 `json:"compareAndSwapSuccess"`
	CompareAndSwapFail      uint64 `json:"compareAndSwapFail"`
	CompareAndDeleteSuccess uint64 `json:"compareAndDeleteSuccess"`
	CompareAndDeleteFail    uint64 `json:"compareAndDeleteFail"`
	ExpireCount             uint64 `json:"expireCount"`
	Watchers                uint64 `json:"watchers"`
	CutWatchers             uint64 `json:"-"` // watchers that were removed because they were too slow; not part of the API
}
