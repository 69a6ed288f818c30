package kvstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"time"
)

// Snapshot is a store as it was at one moment. Making one costs the same for any size of tree.
type Snapshot struct {
	version version
	events  []*Event
	stats   Stats
	clock   time.Time
}

// Snapshot freezes the store's present state: tree, history, statistics, index, and the clock.
func (s *Store) Snapshot() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Snapshot{s.freezeLocked(), slices.Clone(s.history.all()), s.statsLocked(), s.clock}
}

// Index is the store's index when the snapshot was made.
func (p *Snapshot) Index() uint64 { return p.version.index }

// Release lets go of the state. The snapshot cannot be written afterwards.
func (p *Snapshot) Release() { *p = Snapshot{} }

// Clone returns a store of its own with the same content and no watchers. It shares the tree and copies the history and the list of
// keys that expire.
func (s *Store) Clone() *Store {
	c := &Store{options: s.options, readOnly: s.readOnly}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.freezeLocked()
	c.tree.root.Store(now.root)
	c.tree.epoch = s.tree.epoch // above that of all there is
	c.index.Store(now.index)
	c.clock = s.clock
	c.expiry = expiry{heap: slices.Clone(s.expiry.heap), at: maps.Clone(s.expiry.at)}
	c.history = s.history
	c.history.events, c.history.head = slices.Clone(s.history.all()), 0
	c.stats = s.statsLocked()
	c.takeStats(c.stats)
	return c
}

// takeStats sets the counters. The number of watchers is the store's own.
func (s *Store) takeStats(st Stats) {
	for i := range s.gets {
		s.gets[i].success.Store(0)
		s.gets[i].fail.Store(0)
	}
	s.gets[0].success.Store(st.GetSuccess)
	s.gets[0].fail.Store(st.GetFail)
	st.GetSuccess, st.GetFail, st.Watchers, st.CutWatchers = 0, 0, 0, 0
	s.stats = st
}

// content is what a restored store consists of.
type content struct {
	root   *dir
	index  uint64
	stats  Stats
	events []*Event
	expiry expiry
}

// becomeLocked replaces the store's state and lets each watcher go on where it can.
func (s *Store) becomeLocked(c content) {
	before := s.index.Load()
	s.changeLocked(c.index, func(t *tree) {
		t.freeze() // what is kept of the old tree is not owned by the new one
		t.root.Store(c.root)
		s.addNamespaces() // of which a document may know nothing
	})
	s.expiry = c.expiry
	s.takeStats(c.stats)
	s.history.events, s.history.head, s.history.bytes = nil, 0, 0
	for _, e := range c.events {
		s.history.add(e)
	}

	start := s.history.start()
	for f := range s.hub.all {
		since := max(f.from, before+1)
		if c.index < before || since <= c.index && (start == 0 || start > since) {
			s.hub.end(f, NewError(CodeWatcherCleared, "", c.index))
			continue
		}
		for _, e := range s.history.since(since) {
			if f.matches(e) && !s.hub.tell(f, e) {
				break
			}
		}
	}
}

// The stream of a snapshot: 5 bytes of magic and version, then chunks. A chunk is its length and its CRC-32C, 4 bytes each,
// little endian, and as many bytes. A chunk of no length ends the stream. The first chunk is the head, then come the events, then the
// items of the tree; no item lies in two chunks.
const (
	streamMagic = "stkv\x01"
	chunkSize   = 64 << 10
)

// The items of a tree. A directory is followed by its children and an end.
const (
	itemEnd  = 0
	itemDir  = 1
	itemFile = 2

	itemExpires = 4 // is added to the kind
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WriteTo writes the snapshot as a binary stream, which Restore reads.
func (p *Snapshot) WriteTo(w io.Writer) (int64, error) {
	if p.version.root == nil {
		return 0, errors.New("write a snapshot of the key store: it was released")
	}
	c := chunker{w: w}
	c.raw([]byte(streamMagic))
	c.buf = binary.AppendUvarint(c.buf, p.version.index)
	c.buf = appendTime(c.buf, p.clock)
	numbers := p.stats.numbers()
	c.buf = binary.AppendUvarint(c.buf, uint64(len(numbers)))
	for _, n := range numbers {
		c.buf = binary.AppendUvarint(c.buf, *n)
	}
	c.buf = binary.AppendUvarint(c.buf, uint64(len(p.events)))
	c.flush()
	for _, e := range p.events {
		c.buf = appendEvent(c.buf, e)
		c.next()
	}
	c.dir("", p.version.root)
	c.flush()
	c.chunk(nil)
	if c.err != nil {
		return c.written, fmt.Errorf("write a snapshot of the key store: %w", c.err)
	}
	return c.written, nil
}

// numbers are the counters in the order of the stream. A later version may append some.
func (s *Stats) numbers() []*uint64 {
	return []*uint64{
		&s.GetSuccess, &s.GetFail, &s.SetSuccess, &s.SetFail, &s.DeleteSuccess, &s.DeleteFail, &s.UpdateSuccess, &s.UpdateFail,
		&s.CreateSuccess, &s.CreateFail, &s.CompareAndSwapSuccess, &s.CompareAndSwapFail, &s.CompareAndDeleteSuccess,
		&s.CompareAndDeleteFail, &s.ExpireCount,
	}
}

// chunker collects items and writes them as chunks.
type chunker struct {
	w       io.Writer
	buf     []byte
	written int64
	err     error
}

func (c *chunker) raw(b []byte) {
	if c.err == nil {
		var n int
		n, c.err = c.w.Write(b)
		c.written += int64(n)
	}
}

func (c *chunker) chunk(b []byte) {
	var head [8]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(b)))
	binary.LittleEndian.PutUint32(head[4:], crc32.Checksum(b, castagnoli))
	c.raw(head[:])
	c.raw(b)
}

func (c *chunker) flush() {
	if len(c.buf) > 0 {
		c.chunk(c.buf)
		c.buf = c.buf[:0]
	}
}

// next ends an item.
func (c *chunker) next() {
	if len(c.buf) >= chunkSize {
		c.flush()
	}
}

func (c *chunker) item(kind byte, name string, a attributes) {
	if !a.expire.IsZero() {
		kind |= itemExpires
	}
	c.buf = append(c.buf, kind)
	c.buf = appendString(c.buf, name)
	c.buf = binary.AppendUvarint(c.buf, a.created)
	c.buf = binary.AppendUvarint(c.buf, a.modified)
	if !a.expire.IsZero() {
		c.buf = appendTime(c.buf, a.expire)
	}
}

func (c *chunker) dir(name string, d *dir) {
	c.item(itemDir, name, d.attributes)
	c.next()
	d.each(func(name string, e entry) {
		if c.err != nil {
			return
		}
		if e.dir != nil {
			c.dir(name, e.dir)
			return
		}
		a, value := e.file.read()
		c.item(itemFile, name, a)
		c.buf = appendString(c.buf, value)
		c.next()
	})
	c.buf = append(c.buf, itemEnd)
	c.next()
}

// Restore replaces the store's state by that of a snapshot. When the stream is damaged it returns an error and the store
// stays as it was. Live watchers go on when the new history holds what they have not seen; others end with code 400.
func (s *Store) Restore(r io.Reader) error {
	c, clock, err := readSnapshot(r)
	if err != nil {
		return fmt.Errorf("restore a snapshot of the key store: %w", err)
	}
	s.replace(c, clock)
	return nil
}

func (s *Store) replace(c content, clock time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = clock
	s.becomeLocked(c)
}

// chunks reads what a chunker wrote.
type chunks struct {
	r     *bufio.Reader
	buf   bytes.Buffer
	d     decoder
	ended bool
}

// more makes sure that there is something to decode, and says whether there is.
func (c *chunks) more() (bool, error) {
	if len(c.d.b) > 0 {
		return true, nil
	}
	if c.ended || c.d.err != nil {
		return false, c.d.err
	}
	var head [8]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return false, noEOF(err)
	}
	// The buffer grows with what comes, not with what the length promises.
	c.buf.Reset()
	size := int64(binary.LittleEndian.Uint32(head[:]))
	if _, err := io.CopyN(&c.buf, c.r, size); err != nil {
		return false, noEOF(err)
	}
	if crc32.Checksum(c.buf.Bytes(), castagnoli) != binary.LittleEndian.Uint32(head[4:]) {
		return false, errors.New("a chunk's checksum is wrong")
	}
	c.ended = size == 0
	c.d.b = c.buf.Bytes()
	return !c.ended, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// need is more where the stream may not end.
func (c *chunks) need() error {
	ok, err := c.more()
	if err == nil && !ok {
		err = errShort
	}
	return err
}

// readSnapshot reads exactly to the end of a snapshot's stream when r is a *bufio.Reader.
func readSnapshot(r io.Reader) (out content, clock time.Time, err error) {
	br, ok := r.(*bufio.Reader)
	if !ok {
		br = bufio.NewReaderSize(r, chunkSize)
	}
	magic := make([]byte, len(streamMagic))
	if _, err := io.ReadFull(br, magic); err != nil {
		return out, clock, noEOF(err)
	}
	if string(magic) != streamMagic {
		return out, clock, errors.New("it is no snapshot, or one of a version that is not known here")
	}
	c := chunks{r: br}
	if err := c.need(); err != nil {
		return out, clock, err
	}
	out.index = c.d.uvarint()
	clock = c.d.time()
	counters := c.d.uvarint()
	numbers := out.stats.numbers()
	for i := uint64(0); i < counters && c.d.err == nil; i++ {
		if n := c.d.uvarint(); i < uint64(len(numbers)) {
			*numbers[i] = n
		}
	}
	events := c.d.uvarint()
	last := uint64(0)
	for ; events > 0 && c.d.err == nil; events-- {
		if err := c.need(); err != nil {
			return out, clock, err
		}
		e := c.d.event()
		if c.d.err != nil {
			break
		}
		if e.Node == nil || e.Index() <= last || e.Index() > out.index {
			return out, clock, errors.New("the events of the history are not in order")
		}
		last = e.Index()
		out.events = append(out.events, e)
	}
	if c.d.err != nil {
		return out, clock, c.d.err
	}
	if out.root, err = c.tree(&out.expiry); err != nil {
		return out, clock, err
	}
	if ok, err := c.more(); err != nil || ok {
		return out, clock, errors.Join(err, errors.New("there is something behind the end of the tree"))
	}
	return out, clock, nil
}

// tree reads a directory with all that is in it, and lists what expires.
func (c *chunks) tree(x *expiry) (*dir, error) {
	type open struct {
		builder
		path string
	}
	var stack []*open
	for {
		if err := c.need(); err != nil {
			return nil, err
		}
		kind := c.d.byte()
		if kind == itemEnd {
			if len(stack) == 0 {
				return nil, errors.New("the tree has no root")
			}
			top := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if len(stack) == 0 {
				return top.dir, nil
			}
			if !stack[len(stack)-1].add(top.dir.name, entry{dir: top.dir}) {
				return nil, errOrder
			}
			continue
		}
		name := c.d.string()
		a := attributes{created: c.d.uvarint(), modified: c.d.uvarint()}
		if kind&itemExpires != 0 {
			a.expire = c.d.time()
			if tidyExpire(a.expire) != a.expire || a.expire.IsZero() {
				c.d.fail()
			}
		}
		if c.d.err != nil {
			return nil, c.d.err
		}
		if (len(stack) > 0) != isName(name) || len(stack) > maxDepth {
			return nil, fmt.Errorf("a key has the name %.100q, or lies too deep", name)
		}
		path := ""
		if len(stack) > 0 && (!a.expire.IsZero() || kind&^itemExpires == itemDir) {
			path = stack[len(stack)-1].path + "/" + name
		}
		if !a.expire.IsZero() && path != "" {
			x.set(path, a.expire)
		}
		switch kind &^ itemExpires {
		case itemDir:
			stack = append(stack, &open{newBuilder(name, a), path})
		case itemFile:
			value := c.d.bytes()
			if c.d.err != nil {
				return nil, c.d.err
			}
			if len(stack) == 0 || !stack[len(stack)-1].add(name, entry{file: newRecord(name, a, value)}) {
				return nil, errOrder
			}
		default:
			return nil, errors.New("the tree has an item that is not known here")
		}
	}
}

var errOrder = errors.New("the keys of a directory are not in order")

// isName says whether a string can be one element of a clean path.
func isName(s string) bool {
	return s != "" && s != "." && s != ".." && indexSlash(s) == len(s)
}

// The actions in the order of their numbers in the encoding.
var actions = [...]Action{ActionGet, ActionCreate, ActionSet, ActionUpdate, ActionDelete, ActionCompareAndSwap, ActionCompareAndDelete, ActionExpire}

const (
	eventNode = 1 << iota
	eventPrev
	eventRefresh
)

const (
	nodeValue = 1 << iota // of a file that is there
	nodeDir
	nodeExpires
)

func appendEvent(b []byte, e *Event) []byte {
	b = append(b, byte(max(0, slices.Index(actions[:], e.Action))))
	b = append(b, byte(flag(e.Node != nil)*eventNode|flag(e.PrevNode != nil)*eventPrev|flag(e.Refresh)*eventRefresh))
	b = binary.AppendUvarint(b, e.EtcdIndex)
	if e.Node != nil {
		b = appendNode(b, e.Node, !e.Removes())
	}
	if e.PrevNode != nil {
		b = appendNode(b, e.PrevNode, true)
	}
	return b
}

func appendNode(b []byte, n *Node, isThere bool) []byte {
	hasValue := isThere && !n.Dir
	b = append(b, byte(flag(hasValue)*nodeValue|flag(n.Dir)*nodeDir|flag(!n.Expiration.IsZero())*nodeExpires))
	b = appendString(b, n.Key)
	if hasValue {
		b = appendString(b, n.Value)
	}
	if !n.Expiration.IsZero() {
		b = appendTime(b, n.Expiration)
		b = binary.AppendUvarint(b, zigzag(n.TTL))
	}
	b = binary.AppendUvarint(b, n.ModifiedIndex)
	return binary.AppendUvarint(b, n.CreatedIndex)
}

// event reads an event of a change, which has no list of children.
func (d *decoder) event() *Event {
	e := &Event{}
	action, bits := d.byte(), d.byte()
	if int(action) >= len(actions) {
		d.fail()
		return e
	}
	e.Action, e.Refresh, e.EtcdIndex = actions[action], bits&eventRefresh != 0, d.uvarint()
	if bits&eventNode != 0 {
		e.Node = d.node()
	}
	if bits&eventPrev != 0 {
		e.PrevNode = d.node()
	}
	return e
}

func (d *decoder) node() *Node {
	bits := d.byte()
	n := &Node{Key: d.string(), Dir: bits&nodeDir != 0}
	if bits&nodeValue != 0 {
		n.Value = d.string()
	}
	if bits&nodeExpires != 0 {
		n.Expiration, n.TTL = d.time(), unzigzag(d.uvarint())
	}
	n.ModifiedIndex, n.CreatedIndex = d.uvarint(), d.uvarint()
	return n
}
