package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"go.etcd.io/bbolt"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/wal"
)

const (
	logFile = "log" // in the state directory
	// foldDelay is how long the database may be behind the log. A dockerd that is started after this daemon was killed,
	// and without a handback, misses the labels and options of volumes younger than that.
	foldDelay = 50 * time.Millisecond
	// maxLogged bounds the log, in changes: those that wait for a database that cannot be written, and those that a load
	// without a pause brings while others are folded. About as many fit into what the log sets aside.
	maxLogged = 1024
)

// ownKey holds, in the bucket of marks, the number of the transaction that wrote it: while that is the last one, nobody
// but us has written the database since. No volume has such a name.
var ownKey = []byte("/transaction")

// logEntry is a change in the log.
type logEntry struct {
	Name        string
	Record      *record
	Mark        *mark
	Transaction int // our last one when it was appended
}

// openLog opens the log in dir and brings what it holds into the database. Where somebody else, a dockerd, has written
// the database since, it is dropped and the names are returned; but not from a database that was replaced by an older
// copy, whose state it completes.
func (m *metadata) openLog(dir string, replaced bool) (dropped []string, err error) {
	path := filepath.Join(dir, logFile)
	log, payloads, err := wal.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the log of volume records: %w", err)
	}
	defer func() {
		if err == nil {
			m.log = log
		} else {
			_ = log.Close() // the first error is the one to report
		}
	}()
	own := 0
	err = m.db.View(func(tx *bbolt.Tx) error {
		m.last = tx.ID()
		if marks := tx.Bucket(markBucket); marks != nil {
			own, _ = strconv.Atoi(string(marks.Get(ownKey))) // absent: 0, which no transaction has
		}
		return nil
	})
	if err != nil || len(payloads) == 0 {
		return nil, err
	}
	var last int
	for _, p := range payloads {
		var e logEntry
		if err := json.Unmarshal(p, &e); err != nil {
			return nil, fmt.Errorf("read the log of volume records %s: %w", path, err)
		}
		last = e.Transaction
		m.logged = append(m.logged, &change{name: e.Name, record: e.Record, mark: e.Mark})
	}
	if !replaced && m.last != last && m.last != own {
		for _, c := range m.logged {
			dropped = append(dropped, c.name)
		}
		m.logged = nil
	}
	if err := m.foldInto(m.logged); err != nil {
		return nil, fmt.Errorf("bring the log of volume records %s into %s: %w", path, metadataFile, err)
	}
	m.logged = nil
	return dropped, log.Clear()
}

// commit returns when a change is durable. Of those who come while one append flushes, the first makes the next for all
// of them.
func (m *metadata) commit(c *change) error {
	c.done = make(chan error, 1)
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return errClosed
	}
	delete(m.settled, c.name) // an older mark of the name is replaced by this change
	m.pending = append(m.pending, c)
	first := len(m.pending) == 1
	m.mu.Unlock()
	if first {
		m.appendPending()
	}
	return <-c.done
}

// appendPending waits for the append before and makes one for all that came meanwhile. Who leads a batch calls it, and close,
// so nobody else appends between the emptying of a full log and that.
func (m *metadata) appendPending() {
	m.turn.Lock()
	if m.isFull() {
		m.turn.Unlock()
		m.empty() // takes the turn after the lock that comes before it
		m.turn.Lock()
	}
	defer m.turn.Unlock()
	m.mu.Lock()
	batch, last, full := m.pending, m.last, m.held >= maxLogged
	m.pending = nil
	m.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	err := errBehind
	if !full {
		err = m.append(batch, last)
	}
	if err == nil {
		err = fault.Point("volumes.record.logged")
	}
	if err == nil {
		m.mu.Lock()
		m.logged = append(m.logged, batch...)
		m.held += len(batch)
		if !m.due && !m.closed {
			m.due = true
			m.folds.Go(m.foldSoon)
		}
		m.mu.Unlock()
	}
	for _, c := range batch {
		c.done <- err
	}
}

func (m *metadata) isFull() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held >= maxLogged
}

var errBehind = errors.New(metadataFile + " cannot be written; the daemon's log says why")

func (m *metadata) append(batch []*change, last int) error {
	entries := make([][]byte, len(batch))
	for i, c := range batch {
		var err error
		if entries[i], err = json.Marshal(logEntry{Name: c.name, Record: c.record, Mark: c.mark, Transaction: last}); err != nil {
			return err
		}
	}
	return m.log.Append(entries...)
}

// foldSoon folds once the changes of a burst have come, or the store closes.
func (m *metadata) foldSoon() {
	select {
	case <-time.After(foldDelay):
	case <-m.closing:
	}
	m.mu.Lock()
	m.due = false
	m.mu.Unlock()
	if err := m.fold(); err != nil {
		m.complain(err)
	}
}

// fold brings what is logged into the database, as one transaction, and empties the log unless more has come meanwhile.
func (m *metadata) fold() error {
	m.folding.Lock()
	defer m.folding.Unlock()
	m.mu.Lock()
	batch := m.logged
	m.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	if err := m.foldInto(batch); err != nil {
		return err
	}
	if err := fault.Point("volumes.record.folded"); err != nil {
		return err
	}
	m.turn.Lock()
	defer m.turn.Unlock()
	m.folded(batch)
	return nil
}

// empty folds while nobody appends, so that the log is empty afterwards. A failure is logged: appendPending refuses what
// a full log has no room for.
func (m *metadata) empty() {
	m.folding.Lock()
	defer m.folding.Unlock()
	m.turn.Lock()
	defer m.turn.Unlock()
	m.mu.Lock()
	batch := m.logged
	m.mu.Unlock()
	if err := m.foldInto(batch); err != nil {
		m.complain(err)
		return
	}
	m.folded(batch)
}

// folded takes note that batch is in the database. The caller has the turn.
func (m *metadata) folded(batch []*change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.logged = m.logged[len(batch):]
	if len(m.logged) == 0 {
		m.logged, m.held = nil, 0
		m.log.Reset()
	}
}

func (m *metadata) complain(err error) {
	slog.Error("volume records stay in the log", "database", m.db.Path(), "error", err) // until the next fold
}

// foldInto makes a transaction of batch.
func (m *metadata) foldInto(batch []*change) error {
	if len(batch) == 0 {
		return nil
	}
	settled := m.takeSettled(batch)
	defer m.reserve()
	return m.update(func(tx *bbolt.Tx) error {
		if err := apply(tx, batch, settled); err != nil {
			return err
		}
		return tx.Bucket(markBucket).Put(ownKey, []byte(strconv.Itoa(tx.ID())))
	})
}

// takeSettled returns marks that can go with a fold of batch. There are some only when enough have come together to be
// worth the flush of the volumes.
func (m *metadata) takeSettled(batch []*change) map[string]struct{} {
	m.mu.Lock()
	if m.sync == nil || len(m.settled) < maxMarks {
		m.mu.Unlock()
		return nil
	}
	settled := m.settled
	m.settled = map[string]struct{}{}
	for _, c := range batch { // this fold writes their marks
		if _, ok := settled[c.name]; ok {
			delete(settled, c.name)
			m.settled[c.name] = struct{}{}
		}
	}
	m.mu.Unlock()
	if m.sync(context.Background()) != nil {
		return nil // the marks stay in the database until a later start or stop clears them
	}
	return settled
}

// update is a transaction, whose number is our last one afterwards.
func (m *metadata) update(do func(tx *bbolt.Tx) error) error {
	number := 0
	err := m.db.Update(func(tx *bbolt.Tx) error {
		number = tx.ID()
		return do(tx)
	})
	if err == nil {
		m.mu.Lock()
		m.last = number
		m.mu.Unlock()
	}
	return err
}
