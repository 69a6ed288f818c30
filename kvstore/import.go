package kvstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/internal/fault"
)

var (
	// ErrDocument is returned by Import for what is no document that the tree can become. Nothing was proposed.
	ErrDocument = fmt.Errorf("it is no document of a key store: %w", errdefs.ErrInvalidArgument)

	// ErrHasKeys is returned by Import when the tree has keys and the request does not say that they may go.
	ErrHasKeys = fmt.Errorf("the tree has keys: %w", errdefs.ErrConflict)

	// ErrSuperseded is returned by Import when another import has begun meanwhile.
	ErrSuperseded = fmt.Errorf("another import has begun: %w", errdefs.ErrConflict)
)

// ImportRequest says what the tree is to become.
type ImportRequest struct {
	Document []byte // of Save's form, whoever wrote it
	Keep     string // a directory directly below the root that stays as it is, whatever the document has there; "" for none
	Replace  bool   // also when the tree has keys outside Keep
	Piece    int    // how many bytes of it a command carries; 4 MiB
}

// Imported says what an import has brought.
type Imported struct {
	Keys, Directories int    // of the document, without those of Keep
	Index             uint64 // the store's index now
}

// Piece is the part of an import that one command carries. The pieces of an import, one behind the other, are a store's
// snapshot.
type Piece struct {
	Import uint64 // names the import; never 0
	Number uint64 // from 0 on
	Count  uint64 // of the import's pieces; 0 gives the import up
	Data   string
	// Replace is that of the request.
	Replace bool
}

// importing is an import of which not all pieces have come.
type importing struct {
	name, count uint64
	pieces      []string
}

// The bounds of an index in a document: there must be room for what comes.
const maxIndex = math.MaxInt64 / 2

// Import replaces the tree, with its history, by that of a document, all or nothing: every host applies it at the same
// place in the log. Watchers end with code 400. The document's indexes and times to live stay, and its history does as long
// as the index need not be raised. The store's index never goes back: where the document's is below it, the history is
// forgotten, and a watch from an index before the import has the answer 401.
//
// A document that cannot be taken is refused before anything is proposed. When ctx ends before Import has returned, the import
// may be carried out all the same.
func (r *Replica) Import(ctx context.Context, q ImportRequest) (done Imported, err error) {
	if q.Piece <= 0 {
		q.Piece = 4 << 20
	}
	if q.Keep != "" && depth(clean(q.Keep)) != 1 {
		return done, fmt.Errorf("import into the key store: keep %q: it is not directly below the root: %w", q.Keep, errdefs.ErrInvalidArgument)
	}
	// A store of its own takes the document first, so that it is known to be sound.
	trial := New(r.store.options)
	if err := trial.Recovery(q.Document); err != nil {
		return done, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	if done, err = trial.survey(clean(q.Keep)); err != nil {
		return done, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	if !q.Replace && hasKeys(r.store.tree.root.Load(), r.store.readOnly, clean(q.Keep)) {
		return done, fmt.Errorf("import into the key store: %w", ErrHasKeys)
	}
	p := Piece{Import: rand.Uint64() | 1, Replace: q.Replace}
	out := &pieces{size: q.Piece, count: &p.Count}
	if _, err := trial.Snapshot().WriteTo(out); err != nil { // to know how many there are
		return done, err
	}
	p.Count = (out.total + uint64(q.Piece) - 1) / uint64(q.Piece)
	out = &pieces{size: q.Piece, count: &p.Count, take: func(data string) error {
		p.Data = data
		_, err := r.Do(ctx, Command{Op: OpImport, Path: q.Keep, Piece: p})
		p.Number++
		if err == nil {
			err = fault.Point("kvstore.import.piece")
		}
		return err
	}}
	if _, err = trial.Snapshot().WriteTo(out); err == nil {
		err = out.end()
	}
	if err != nil {
		return Imported{}, r.giveUp(ctx, p, err)
	}
	done.Index = r.store.Index()
	return done, nil
}

// giveUp has the hosts forget the pieces of an import that failed, as far as that can be done, and returns why it did.
func (r *Replica) giveUp(ctx context.Context, p Piece, err error) error {
	var refused *Error
	if errors.As(err, &refused) {
		switch refused.Code {
		case CodeDirNotEmpty:
			return fmt.Errorf("import into the key store: %w", ErrHasKeys)
		case CodeCompareFailed:
			return fmt.Errorf("import into the key store: %w", ErrSuperseded)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	p.Data, p.Number, p.Count = "", 0, 0
	_, _ = r.Do(ctx, Command{Op: OpImport, Piece: p}) // the next import drops them, too
	return fmt.Errorf("import into the key store: %w", err)
}

// pieces cuts what is written to it. Without take it only counts.
type pieces struct {
	size  int
	total uint64
	count *uint64
	buf   []byte
	take  func(string) error
}

func (p *pieces) Write(b []byte) (int, error) {
	p.total += uint64(len(b))
	if p.take == nil {
		return len(b), nil
	}
	for rest := b; len(rest) > 0; {
		n := min(len(rest), p.size-len(p.buf))
		p.buf, rest = append(p.buf, rest[:n]...), rest[n:]
		if len(p.buf) == p.size {
			if err := p.end(); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

// end hands on what is left.
func (p *pieces) end() error {
	if len(p.buf) == 0 {
		return nil
	}
	data := string(p.buf)
	p.buf = p.buf[:0]
	return p.take(data)
}

// survey counts what a document has brought and refuses what a store could not go on from.
func (s *Store) survey(keep string) (done Imported, err error) {
	root, index := s.tree.root.Load(), s.index.Load()
	if index > maxIndex {
		return done, fmt.Errorf("its index %d leaves no room for changes", index)
	}
	if !hasNamespaces(root, s.readOnly) {
		return done, errNamespace
	}
	var walk func(path string, d *dir, counts bool) error
	walk = func(path string, d *dir, counts bool) (err error) {
		d.each(func(name string, e entry) {
			if err != nil {
				return
			}
			below := path + "/" + name
			if a, _ := e.read(); a.created > index || a.modified > index {
				err = fmt.Errorf("%.100q was changed at an index above the document's own, %d", below, index)
				return
			}
			counted := counts && below != keep
			switch {
			case e.dir != nil:
				done.Directories += int(flag(counted && !s.readOnly[below]))
				err = walk(below, e.dir, counted)
			case counted:
				done.Keys++
			}
		})
		return err
	}
	return done, walk("", root, true)
}

var errNamespace = errors.New("a key stands where the API keeps a directory of its own")

// hasNamespaces says whether what cannot be written is a directory.
func hasNamespaces(root *dir, readOnly map[string]bool) bool {
	for name := range readOnly {
		if e, code, _ := root.find(name); code == CodeNotDir || code == 0 && e.dir == nil {
			return false
		}
	}
	return true
}

// hasKeys says whether there is anything that a store does not begin with, outside keep.
func hasKeys(root *dir, readOnly map[string]bool, keep string) (has bool) {
	root.each(func(name string, e entry) {
		path := "/" + name
		has = has || path != keep && (e.dir == nil || !readOnly[path] || !e.dir.isEmpty())
	})
	return has
}

// importPiece takes a piece and, when it is the last one, the whole import. It assumes the replica's lock.
func (r *Replica) importPiece(c *Command) *Result {
	p := &c.Piece
	refuse := func(code int, cause string) *Result {
		return &Result{Err: NewError(code, cause, r.store.Index())}
	}
	if p.Count == 0 {
		if r.importing.name == p.Import {
			r.importing = importing{}
		}
		return &Result{}
	}
	if p.Number == 0 {
		r.importing = importing{name: p.Import, count: p.Count}
	}
	i := &r.importing
	if i.name != p.Import || i.count != p.Count || uint64(len(i.pieces)) != p.Number {
		return refuse(CodeCompareFailed, "another import has begun")
	}
	i.pieces = append(i.pieces, p.Data)
	if uint64(len(i.pieces)) < i.count {
		return &Result{}
	}
	readers := make([]io.Reader, len(i.pieces))
	for n, piece := range i.pieces {
		readers[n] = strings.NewReader(piece)
	}
	r.importing = importing{}
	content, _, err := readSnapshot(bufio.NewReaderSize(io.MultiReader(readers...), chunkSize))
	if err != nil {
		return refuse(CodeInvalidField, err.Error())
	}
	r.wakeRun()
	if err := r.store.takeOver(c, content); err != nil {
		return &Result{Err: err}
	}
	return &Result{}
}

// takeOver is what the last piece of an import does.
func (s *Store) takeOver(c *Command, in content) *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.Estimate && !c.Time.IsZero() {
		s.tickLocked(c.Time)
	}
	keep, root, index := clean(c.Path), s.tree.root.Load(), s.index.Load()
	switch {
	case !c.Piece.Replace && hasKeys(root, s.readOnly, keep):
		return NewError(CodeDirNotEmpty, "/", index)
	case in.index > maxIndex, !hasNamespaces(in.root, s.readOnly), keep != "/" && depth(keep) != 1:
		return NewError(CodeInvalidField, "import", index)
	}
	if keep != "/" {
		s.keepLocked(keep, &in)
	}
	if in.index < index {
		// What is kept of the past would be that of another index. One index is left out, so that who has seen all that
		// was before learns of it as well.
		in.index = index + 2
		in.events = []*Event{{Action: ActionSet, Node: &Node{Key: "/", Dir: true, ModifiedIndex: in.index, CreatedIndex: in.index}, EtcdIndex: in.index}}
	}
	in.stats = s.statsLocked()
	s.hub.endAll(NewError(CodeWatcherCleared, "", in.index))
	s.becomeLocked(in)
	return nil
}

// keepLocked carries a directory of the store over to what it becomes.
func (s *Store) keepLocked(keep string, in *content) {
	isKept := func(path string) bool { return path == keep || isBelow(path, keep) }
	for _, d := range slices.Clone(in.expiry.heap) {
		if isKept(d.path) {
			in.expiry.set(d.path, time.Time{})
		}
	}
	var becomes tree // its epoch is below that of all that the store has made, so that stays as it is
	becomes.root.Store(in.root)
	switch e, code, _ := s.tree.root.Load().find(keep); {
	case code == 0:
		becomes.put(keep, e, attributes{})
	default:
		if _, code, _ := in.root.find(keep); code == 0 {
			becomes.remove(keep)
		}
	}
	in.root = becomes.root.Load()
	for _, d := range s.expiry.heap {
		if isKept(d.path) {
			in.expiry.set(d.path, d.time)
		}
	}
}

// writeTo and read are the form of an import under way in a replica's snapshot.
func (i *importing) writeTo(c *chunker) {
	for _, n := range []uint64{i.name, i.count, uint64(len(i.pieces))} {
		c.buf = binary.AppendUvarint(c.buf, n)
	}
	c.next()
	for _, piece := range i.pieces {
		c.buf = appendString(c.buf, piece)
		c.next()
	}
}

func (i *importing) read(c *chunks) error {
	if err := c.need(); err != nil {
		return err
	}
	i.name, i.count = c.d.uvarint(), c.d.uvarint()
	for n := c.d.uvarint(); n > 0 && c.d.err == nil; n-- {
		if err := c.need(); err != nil {
			return err
		}
		i.pieces = append(i.pieces, c.d.string())
	}
	return c.d.err
}
