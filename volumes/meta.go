package volumes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"go.etcd.io/bbolt"

	"stated.dev/stated/internal/wal"
)

// record is a volume in metadata.db: key is the name, value this as JSON. The format is Docker's.
type record struct {
	Name    string
	Driver  string
	Labels  map[string]string
	Options map[string]string
}

// A mark says that a change to the disk follows (or followed) a change of the record, and may not be durable yet.
// Marks lie in a bucket of their own beside Docker's, in the same transaction as the record, and a clean stop leaves
// none. After a crash they tell a volume whose creation was recorded but not finished from one that somebody took
// away, and the remains of a removed volume from a directory that somebody put there.
type mark struct {
	Op    string // one of the three below
	Token string `json:",omitempty"` // for remove: the driver's name of what is to be deleted
}

const (
	markCreate = "create" // a volume without a directory is made: it is empty
	markImport = "import" // one without a directory is forgotten: it had data
	markRemove = "remove"
)

var (
	recordBucket = []byte("volumes")
	markBucket   = []byte("stated.marks")
)

const (
	metadataFile = "metadata.db"
	// openWait is how long another process may hold the database before the start fails.
	openWait = time.Second
	// reserveSize is how much of the disk is set aside for the database to grow by, beside its own size: a transaction
	// copies the pages that it changes.
	reserveSize = 256 << 10
	// maxMarks bounds the marks that wait to be cleared. Clearing them costs one flush of the volumes directory.
	maxMarks = 1024
)

// metadata keeps the records. A change is durable once it is in the log, with one flush for all that came at once; the
// database follows soon, in one transaction for all that came meanwhile. What the log holds when the store opens was
// acknowledged and never came into the database, so it is brought there first.
type metadata struct {
	db      *bbolt.DB
	log     *wal.Log
	sync    func(context.Context) error // makes the drivers' part of settled changes durable
	closing chan struct{}
	folds   sync.WaitGroup // the fold that is due

	folding sync.Mutex // held over a transaction; taken before turn
	turn    sync.Mutex // held over an append to the log and over its reset; taken before mu

	mu      sync.Mutex          // guards the fields below; never held over I/O
	pending []*change           // to be appended by the caller of the first, when it is its turn
	logged  []*change           // durable in the log, and not in the database yet
	held    int                 // changes in the log: those, and folded ones before them
	due     bool                // a fold will take what is logged
	last    int                 // number of our last transaction
	settled map[string]struct{} // marks whose disk change is made, though perhaps not durable
	closed  bool
}

// change is one record put or deleted, with the mark that goes with it.
type change struct {
	name   string
	record *record // nil: delete
	mark   *mark   // nil: delete
	done   chan error
}

var errClosed = errors.New("volume store is closed")

// openMetadata opens or creates the database in dir and locks it against other processes. openLog has to follow.
func openMetadata(dir string) (*metadata, error) {
	path := filepath.Join(dir, metadataFile)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: openWait})
	if err != nil {
		return nil, fmt.Errorf("error while opening volume store metadata database (%s): %w%s", path, err, openAdvice(path, err))
	}
	m := &metadata{db: db, closing: make(chan struct{}), settled: map[string]struct{}{}}
	if err := m.ensureBucket(); err != nil {
		_ = db.Close() // the first error is the one to report
		return nil, fmt.Errorf("error while setting up volume store metadata database (%s): %w", path, err)
	}
	m.reserve()
	return m, nil
}

// reserve sets blocks aside behind the end of the database, so that what the log holds fits in when the disk is full.
func (m *metadata) reserve() {
	f, err := os.OpenFile(m.db.Path(), os.O_WRONLY, 0)
	if err != nil {
		return // a full disk is met without a reserve
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 >= 2*st.Size+reserveSize {
		return
	}
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 2*st.Size+reserveSize) // the same
}

// ensureBucket makes Docker's bucket in a new file. It costs no flush on an old one.
func (m *metadata) ensureBucket() error {
	found := false
	err := m.db.View(func(tx *bbolt.Tx) error {
		found = tx.Bucket(recordBucket) != nil
		return nil
	})
	if err != nil || found {
		return err
	}
	return m.db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(recordBucket)
		return err
	})
}

// scan calls visit for every record and mark. A value that is no record is reported to bad and left alone.
func (m *metadata) scan(visit func(record), visitMark func(name string, mk mark), bad func(name string, err error)) error {
	return m.db.View(func(tx *bbolt.Tx) error {
		err := tx.Bucket(recordBucket).ForEach(func(key, value []byte) error {
			if len(value) == 0 {
				return nil // dockerd passes over these as well
			}
			var r record
			if err := json.Unmarshal(value, &r); err != nil {
				bad(string(key), err)
				return nil
			}
			r.Name = string(key) // the key is what dockerd looks up
			visit(r)
			return nil
		})
		if err != nil || tx.Bucket(markBucket) == nil {
			return err
		}
		return tx.Bucket(markBucket).ForEach(func(key, value []byte) error {
			var mk mark
			if err := json.Unmarshal(value, &mk); err == nil && mk.Op != "" { // a mark that cannot be read marks nothing
				visitMark(string(key), mk)
			}
			return nil
		})
	})
}

// settle notes that the disk change announced by name's mark is made.
func (m *metadata) settle(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settled[name] = struct{}{}
}

func apply(tx *bbolt.Tx, batch []*change, settled map[string]struct{}) error {
	records := tx.Bucket(recordBucket)
	marks, err := tx.CreateBucketIfNotExists(markBucket)
	if err != nil {
		return err
	}
	for name := range settled {
		if err := marks.Delete([]byte(name)); err != nil {
			return err
		}
	}
	for _, c := range batch {
		if err := put(records, c.name, c.record); err != nil {
			return fmt.Errorf("error setting volume metadata: %w", err)
		}
		if err := put(marks, c.name, c.mark); err != nil {
			return fmt.Errorf("mark volume metadata: %w", err)
		}
	}
	return nil
}

func put[T any](b *bbolt.Bucket, name string, value *T) error {
	if value == nil {
		return b.Delete([]byte(name))
	}
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return b.Put([]byte(name), data)
}

// replaceMarks commits batch and drops all other marks than keep; without any left their bucket goes as well, so that
// the file is as dockerd would leave it.
func (m *metadata) replaceMarks(batch []*change, keep map[string]mark) error {
	return m.update(func(tx *bbolt.Tx) error {
		if err := apply(tx, batch, nil); err != nil {
			return err
		}
		if err := tx.DeleteBucket(markBucket); err != nil || len(keep) == 0 {
			return err
		}
		marks, err := tx.CreateBucket(markBucket)
		if err != nil {
			return err
		}
		for name, mk := range keep {
			if err := put(marks, name, &mk); err != nil {
				return err
			}
		}
		return nil
	})
}

// hasMarks reports whether the mark bucket exists.
func (m *metadata) hasMarks() (bool, error) {
	found := false
	err := m.db.View(func(tx *bbolt.Tx) error {
		found = tx.Bucket(markBucket) != nil
		return nil
	})
	return found, err
}

// close brings everything into the database, clears the marks and closes the files.
func (m *metadata) close(ctx context.Context) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	if m.log == nil {
		return m.db.Close() // it was never in use
	}
	m.appendPending()
	close(m.closing)
	m.folds.Wait()
	err := m.fold()
	if err == nil {
		err = errors.Join(m.log.Clear(), m.clearMarks(ctx))
	}
	return errors.Join(err, m.log.Close(), m.db.Close())
}

// clearMarks drops the marks of changes that are made and durable. Those of an operation that has not ended stay.
func (m *metadata) clearMarks(ctx context.Context) error {
	found, err := m.hasMarks()
	if err != nil || !found {
		return err
	}
	m.mu.Lock()
	settled := m.settled
	m.settled = map[string]struct{}{}
	m.mu.Unlock()
	if err := m.sync(ctx); err != nil {
		return fmt.Errorf("make volumes durable: %w", err)
	}
	return m.update(func(tx *bbolt.Tx) error {
		if err := apply(tx, nil, settled); err != nil {
			return err
		}
		bucket := tx.Bucket(markBucket)
		if err := bucket.Delete(ownKey); err != nil {
			return err
		}
		if first, _ := bucket.Cursor().First(); first != nil {
			return nil
		}
		return tx.DeleteBucket(markBucket)
	})
}

// openAdvice says what to do about a database that cannot be opened.
func openAdvice(path string, err error) string {
	switch {
	case errors.Is(err, bbolt.ErrTimeout):
		return describeHolder(path)
	case errors.Is(err, bbolt.ErrInvalid), errors.Is(err, bbolt.ErrVersionMismatch), errors.Is(err, bbolt.ErrChecksum):
		return ": the file is damaged; restore it from a backup, or move it away: the copy of the last start takes its place, or the volumes' directories without their labels"
	}
	return ""
}

// describeHolder names who has the file at path locked, as far as the kernel tells.
func describeHolder(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ""
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range bytes.Lines(locks) {
		// A line is "1: FLOCK ADVISORY WRITE 4242 fe:00:1234 0 EOF".
		fields := strings.Fields(string(line))
		if len(fields) < 6 || fields[1] != "FLOCK" || fields[5] != file {
			continue
		}
		pid, err := strconv.Atoi(fields[4])
		if err != nil || pid <= 0 {
			continue
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // a name is a courtesy
		return fmt.Sprintf(": it is held by process %d (%s); stop that process or use another data root", pid, bytes.TrimSpace(name))
	}
	return ": it is held by another process; stop that process or use another data root"
}
