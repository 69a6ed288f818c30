package kvstore

import (
	"hash/maphash"
	"math"
	"math/bits"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"
)

// The tree is a tree of directories, and each directory is a trie of its children by the hashes of their names: a branch
// has a slot for each value of four bits of the hash that occurs below it, and a child hangs at the first branch where it
// is alone.
//
// Readers take no lock. A change is made in place, but what readers can come to changes by one pointer at a time: they find
// each child as it was or as it is. To keep a whole state there is freeze: nothing that exists then is changed any more, and
// later changes copy what they meet on their way from the root, once until the next freeze.

// tree is the root of a tree. Changes and freezes are to be made by one goroutine at a time.
type tree struct {
	root  atomic.Pointer[dir]
	epoch uint32 // what was made in it has not been frozen
}

// kind says what a slot points to. It is the first byte there.
type kind byte

const (
	kindFile kind = iota // a record
	kindDir
	kindBranch

	kindMask kind = 3 // of the byte; a record has the rest
)

func kindOf(p unsafe.Pointer) kind { return *(*kind)(p) & kindMask }

// dir is a directory. All of it but the top never changes.
type dir struct {
	kind
	epoch uint32
	top   unsafe.Pointer // its trie: a branch, the only child, or nil
	name  string
	attributes
}

func newDir(name string, a attributes) *dir { return &dir{kind: kindDir, name: name, attributes: a} }

// branch is followed in memory by as many pointers as bits are set in used. They may change, the rest does not.
type branch struct {
	kind
	used  uint16 // the values of the hash's bits for which there is a slot
	epoch uint32
}

// fan is how many slots a branch can have: fewer make the trie deeper, more leave the last branches with less to share
// what each costs.
const (
	fan     = 1 << fanBits
	fanBits = 4
)

// hashBits is how much of a hash is used. More would only have names that share it wait for longer until they are told
// apart.
const hashBits = 32

// seed makes the hashes of a process its own, so that nobody can choose names that share them.
var seed = maphash.MakeSeed()

// hash returns what a name is found by. Names that share a hash are told apart by that of a further round.
func hash(name string, round int) uint32 {
	if round == 0 {
		return uint32(maphash.String(seed, name))
	}
	var h maphash.Hash
	h.SetSeed(seed)
	_ = h.WriteByte(byte(round)) // cannot fail
	_, _ = h.WriteString(name)   // neither
	return uint32(h.Sum64())
}

// place is where a name belongs at some depth of a trie.
type place struct {
	name  string
	hash  uint32
	shift int
	round int
}

func placeOf(name string) place { return place{name: name, hash: hash(name, 0)} }

// bit returns the bit of the slot in a branch, and goes one branch down.
func (p *place) bit() uint16 {
	if p.shift == hashBits {
		p.round, p.shift = p.round+1, 0
		p.hash = hash(p.name, p.round)
	}
	b := uint16(1) << (p.hash >> p.shift & (fan - 1))
	p.shift += fanBits
	return b
}

// slots returns the pointers of a branch.
func (b *branch) slots() []unsafe.Pointer {
	return unsafe.Slice((*unsafe.Pointer)(unsafe.Add(unsafe.Pointer(b), unsafe.Sizeof(*b))), bits.OnesCount16(b.used))
}

// slot returns the place of one pointer, whose bit is set or to be set.
func (b *branch) slot(bit uint16) *unsafe.Pointer {
	i := bits.OnesCount16(b.used & (bit - 1))
	return (*unsafe.Pointer)(unsafe.Add(unsafe.Pointer(b), unsafe.Sizeof(*b)+uintptr(i)*unsafe.Sizeof(unsafe.Pointer(nil))))
}

// newBranch returns a branch with empty slots.
func newBranch(epoch uint32, used uint16) *branch {
	b := branchOf[bits.OnesCount16(used)]()
	b.kind, b.epoch, b.used = kindBranch, epoch, used
	return b
}

// branchOf makes a branch by the number of its slots.
var branchOf = [fan + 1]func() *branch{
	1: sized[[1]unsafe.Pointer], 2: sized[[2]unsafe.Pointer], 3: sized[[3]unsafe.Pointer], 4: sized[[4]unsafe.Pointer],
	5: sized[[5]unsafe.Pointer], 6: sized[[6]unsafe.Pointer], 7: sized[[7]unsafe.Pointer], 8: sized[[8]unsafe.Pointer],
	9: sized[[9]unsafe.Pointer], 10: sized[[10]unsafe.Pointer], 11: sized[[11]unsafe.Pointer], 12: sized[[12]unsafe.Pointer],
	13: sized[[13]unsafe.Pointer], 14: sized[[14]unsafe.Pointer], 15: sized[[15]unsafe.Pointer], 16: sized[[16]unsafe.Pointer],
}

func sized[S any]() *branch {
	b := new(struct {
		branch
		slots S
	})
	return &b.branch
}

// with returns a branch that has one slot more.
func (b *branch) with(epoch uint32, bit uint16, p unsafe.Pointer) *branch {
	n := newBranch(epoch, b.used|bit)
	i := bits.OnesCount16(b.used & (bit - 1))
	to, from := n.slots(), b.slots()
	copy(to, from[:i])
	to[i] = p
	copy(to[i+1:], from[i:])
	return n
}

// without returns a branch that has one slot less.
func (b *branch) without(epoch uint32, bit uint16) *branch {
	n := newBranch(epoch, b.used&^bit)
	i := bits.OnesCount16(b.used & (bit - 1))
	to, from := n.slots(), b.slots()
	copy(to, from[:i])
	copy(to[i:], from[i+1:])
	return n
}

// nameOf returns the name of a file or directory.
func nameOf(p unsafe.Pointer) string {
	if kindOf(p) == kindDir {
		return (*dir)(p).name
	}
	return record{p}.name()
}

// entry is what a path leads to: a directory when dir is set, else a file.
type entry struct {
	dir  *dir
	file record
}

func entryOf(p unsafe.Pointer) entry {
	if kindOf(p) == kindDir {
		return entry{dir: (*dir)(p)}
	}
	return entry{file: record{p}}
}

func (e entry) pointer() unsafe.Pointer {
	if e.dir != nil {
		return unsafe.Pointer(e.dir)
	}
	return e.file.p
}

func (e entry) read() (a attributes, value string) {
	if e.dir != nil {
		return e.dir.attributes, ""
	}
	return e.file.read()
}

// get finds a name in a directory, or returns nil.
func (d *dir) get(name string) unsafe.Pointer {
	p := atomic.LoadPointer(&d.top)
	at := placeOf(name)
	for p != nil && kindOf(p) == kindBranch {
		b := (*branch)(p)
		bit := at.bit()
		if b.used&bit == 0 {
			return nil
		}
		p = atomic.LoadPointer(b.slot(bit))
	}
	if p == nil || nameOf(p) != name {
		return nil
	}
	return p
}

// isEmpty says whether a directory has no children.
func (d *dir) isEmpty() bool { return atomic.LoadPointer(&d.top) == nil }

// child is a child of a directory with its name.
type child struct {
	name string
	p    unsafe.Pointer
}

// each calls f for the children in the order of their names.
func (d *dir) each(f func(name string, e entry)) {
	for _, c := range d.children() {
		f(c.name, entryOf(c.p))
	}
}

// children lists the children in the order of their names.
func (d *dir) children() []child {
	top := atomic.LoadPointer(&d.top)
	if top == nil {
		return nil
	}
	all := appendChildren(make([]child, 0, 2*fan), top)
	slices.SortFunc(all, func(a, b child) int { return strings.Compare(a.name, b.name) })
	return all
}

func appendChildren(all []child, p unsafe.Pointer) []child {
	if kindOf(p) != kindBranch {
		return append(all, child{nameOf(p), p})
	}
	slots := (*branch)(p).slots()
	for i := range slots {
		all = appendChildren(all, atomic.LoadPointer(&slots[i]))
	}
	return all
}

// find follows a clean path. A code other than 0 says why it leads nowhere, and stop is how much of the path was followed: up
// to the first element that is missing, or to the file where a directory should be.
func (d *dir) find(path string) (e entry, code, stop int) {
	e.dir = d
	for at := 1; at < len(path); {
		end := at + indexSlash(path[at:])
		p := e.dir.get(path[at:end])
		if p == nil {
			return entry{}, CodeKeyNotFound, end
		}
		if e = entryOf(p); e.dir == nil && end < len(path) {
			return entry{}, CodeNotDir, end
		}
		at = end + 1
	}
	return e, 0, len(path)
}

func indexSlash(s string) int {
	if i := strings.IndexByte(s, '/'); i >= 0 {
		return i
	}
	return len(s)
}

// freeze returns the root of what never changes from now on.
func (t *tree) freeze() *dir {
	root := t.root.Load()
	if t.owns(root.epoch) { // else nothing was changed since the last time
		t.epoch++
	}
	return root
}

// owns says whether what was made in an epoch may be changed. When the numbers are used up nothing may be, ever again.
func (t *tree) owns(epoch uint32) bool { return epoch == t.epoch && epoch != math.MaxUint32 }

// ownDir returns the directory in a slot, or a copy of it that it puts there.
func (t *tree) ownDir(slot *unsafe.Pointer) *dir {
	d := (*dir)(*slot)
	if !t.owns(d.epoch) {
		c := *d
		d = &c
		d.epoch = t.epoch
		atomic.StorePointer(slot, unsafe.Pointer(d))
	}
	return d
}

// ownBranch returns the branch in a slot, or a copy of it that it puts there.
func (t *tree) ownBranch(slot *unsafe.Pointer) *branch {
	b := (*branch)(*slot)
	if !t.owns(b.epoch) {
		b = b.copy(t.epoch)
		atomic.StorePointer(slot, unsafe.Pointer(b))
	}
	return b
}

func (b *branch) copy(epoch uint32) *branch {
	c := newBranch(epoch, b.used)
	copy(c.slots(), b.slots())
	return c
}

func (t *tree) ownRoot() *dir {
	root := t.root.Load()
	if !t.owns(root.epoch) {
		c := *root
		root = &c
		root.epoch = t.epoch
		t.root.Store(root)
	}
	return root
}

// put sets a path to what e is. Directories that are missing on the way come into being with the attributes. No element on
// the way may be a file.
func (t *tree) put(path string, e entry, parents attributes) {
	d := t.ownRoot()
	for at := 1; ; {
		end := at + indexSlash(path[at:])
		name := path[at:end]
		if end == len(path) {
			t.set(d, name, e.pointer())
			return
		}
		sub := t.openDir(d, name)
		if sub == nil {
			sub = newDir(strings.Clone(name), parents)
			sub.epoch = t.epoch
			t.set(d, name, unsafe.Pointer(sub))
		}
		d, at = sub, end+1
	}
}

// openDir returns a subdirectory that may be changed, or nil when there is none.
func (t *tree) openDir(d *dir, name string) *dir {
	slot, at := &d.top, placeOf(name)
	for *slot != nil && kindOf(*slot) == kindBranch {
		bit := at.bit()
		if (*branch)(*slot).used&bit == 0 {
			return nil
		}
		slot = t.ownBranch(slot).slot(bit)
	}
	if *slot == nil || nameOf(*slot) != name {
		return nil
	}
	return t.ownDir(slot)
}

// set gives a directory a child of that name, or replaces the one that it has.
func (t *tree) set(d *dir, name string, child unsafe.Pointer) {
	slot, at := &d.top, placeOf(name)
	for *slot != nil && kindOf(*slot) == kindBranch {
		b, bit := (*branch)(*slot), at.bit()
		if b.used&bit == 0 {
			atomic.StorePointer(slot, unsafe.Pointer(b.with(t.epoch, bit, child)))
			return
		}
		slot = t.ownBranch(slot).slot(bit)
	}
	if other := *slot; other != nil && nameOf(other) != name {
		child = t.fork(at, child, other)
	}
	atomic.StorePointer(slot, child)
}

// fork returns branches down to where two children part.
func (t *tree) fork(at place, child, other unsafe.Pointer) unsafe.Pointer {
	beside := place{name: nameOf(other), hash: hash(nameOf(other), at.round), shift: at.shift, round: at.round}
	bit, otherBit := at.bit(), beside.bit()
	b := newBranch(t.epoch, bit|otherBit)
	if bit == otherBit {
		*b.slot(bit) = t.fork(at, child, other)
	} else {
		*b.slot(bit), *b.slot(otherBit) = child, other
	}
	return unsafe.Pointer(b)
}

// remove takes a path, which is there, out of the tree.
func (t *tree) remove(path string) {
	d := t.ownRoot()
	for at := 1; ; {
		end := at + indexSlash(path[at:])
		if end == len(path) {
			atomic.StorePointer(&d.top, t.drop(d.top, placeOf(path[at:])))
			return
		}
		d, at = t.openDir(d, path[at:end]), end+1
	}
}

// drop returns what becomes of a trie from which a child is taken that is there. A child that is left alone on a branch
// takes the branch's place.
func (t *tree) drop(p unsafe.Pointer, at place) unsafe.Pointer {
	if kindOf(p) != kindBranch {
		return nil
	}
	b, bit := (*branch)(p), at.bit()
	slots := b.slots()
	sub := t.drop(*b.slot(bit), at)
	switch {
	case sub == *b.slot(bit):
		return p
	case sub == nil && len(slots) == 2:
		if other := *b.slot(b.used &^ bit); kindOf(other) != kindBranch {
			return other
		}
	case sub != nil && len(slots) == 1 && kindOf(sub) != kindBranch:
		return sub
	}
	if sub == nil {
		return unsafe.Pointer(b.without(t.epoch, bit))
	}
	if !t.owns(b.epoch) {
		b = b.copy(t.epoch)
	}
	atomic.StorePointer(b.slot(bit), sub)
	return unsafe.Pointer(b)
}

// A builder makes a directory of children that come in the order of their names.
type builder struct {
	dir  *dir
	tree tree // nobody else's, so all is made in place
	last string
}

func newBuilder(name string, a attributes) builder { return builder{dir: newDir(name, a)} }

// add appends a child and says whether its name is above the one before.
func (b *builder) add(name string, e entry) bool {
	if b.dir.top != nil && name <= b.last {
		return false
	}
	b.last = name
	b.tree.set(b.dir, name, e.pointer())
	return true
}
