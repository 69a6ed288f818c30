package kvstore

import (
	"strings"
	"unsafe"
)

// The tree is a tree of directories, and each directory is a B-tree of names. All nodes that have been published are
// immutable: a change copies the nodes on the way from the root to the leaf that it concerns, so an old root remains the
// whole old tree. A directory with a million children costs a change five nodes of 160 bytes.
//
// Functions that change a node, or what is below it, begin at a node that the caller has just copied and nobody else has seen.

// fan is how many slots a node has: fewer make the tree deeper to read, more make each node dearer to copy. Other numbers have not
// been measured.
const fan = 16

// node is a node of a directory's B-tree. The top one stands for the directory. The names of a node lie in one string: a
// look-up compares neighbours in memory, and a new value for an old name shares it with the node before.
type node struct {
	dir   *attributes // of the directory, in its top node; nil in all others
	names names
	n     uint8
	inner bool                // slots are nodes one level down, and names their lower bounds, the first one not looked at
	dirs  uint16              // in a leaf: bit i is set when slot i is a directory (*node), else it is a file (record)
	slot  [fan]unsafe.Pointer // the first n are in use
}

// names is n end offsets of 4 bytes each and then the names themselves, ascending in a leaf.
type names string

func (s names) offset(i int) int {
	b := s[4*i : 4*i+4] // one test of bounds, and one load
	return int(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24)
}

func (s names) get(n, i int) string {
	start := 0
	if i > 0 {
		start = s.offset(i - 1)
	}
	return string(s[4*n+start : 4*n+s.offset(i)])
}

// joinNames packs names. The list is short.
func joinNames(list []string) names {
	size := 4 * len(list)
	for _, s := range list {
		size += len(s)
	}
	b := make([]byte, size)
	at := 4 * len(list)
	for i, s := range list {
		at += copy(b[at:], s)
		end := at - 4*len(list)
		b[4*i], b[4*i+1], b[4*i+2], b[4*i+3] = byte(end), byte(end>>8), byte(end>>16), byte(end>>24)
	}
	return names(unsafe.String(unsafe.SliceData(b), len(b)))
}

func (n *node) name(i int) string { return n.names.get(int(n.n), i) }
func (n *node) kid(i int) *node   { return (*node)(n.slot[i]) }
func (n *node) isDir(i int) bool  { return n.dirs>>i&1 != 0 }
func (n *node) file(i int) record { return record{n.slot[i]} }
func (n *node) list(b []string) []string {
	for i := range int(n.n) {
		b = append(b, n.name(i))
	}
	return b
}

func newDir(a attributes) *node { return &node{dir: &a} }

func (n *node) copy() *node { c := *n; return &c }

// setAttributes is for a top node. The attributes of the node that this one was copied from stay as they are.
func (n *node) setAttributes(a attributes) { n.dir = &a }

// search returns where name is among the names from lo on, or would be.
func (n *node) search(name string, lo int) (int, bool) {
	hi := int(n.n)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch c := strings.Compare(n.name(mid), name); {
		case c == 0:
			return mid, true
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return lo, false
}

// below returns the slot of an inner node in which name is.
func (n *node) below(name string) int {
	i, found := n.search(name, 1)
	if !found {
		i--
	}
	return i
}

// child finds a name in the directory: a leaf and the place in it, or nil.
func (n *node) child(name string) (leaf *node, i int) {
	for n.inner {
		n = n.kid(n.below(name))
	}
	if i, found := n.search(name, 0); found {
		return n, i
	}
	return nil, 0
}

// isEmpty says whether a directory has no children.
func (n *node) isEmpty() bool { return n.n == 0 }

// each calls f for the children in the order of their names.
func (n *node) each(f func(leaf *node, i int)) {
	for i := range int(n.n) {
		if n.inner {
			n.kid(i).each(f)
		} else {
			f(n, i)
		}
	}
}

// entry is what a path leads to: a directory when dir is set, else a file.
type entry struct {
	dir  *node
	file record
}

func (e entry) read() (a attributes, value string) {
	if e.dir != nil {
		return *e.dir.dir, ""
	}
	return e.file.read()
}

func (n *node) entry(i int) entry {
	if n.isDir(i) {
		return entry{dir: n.kid(i)}
	}
	return entry{file: n.file(i)}
}

// find follows a clean path. A code other than 0 says why it leads nowhere, and stop is how much of the path was followed: up
// to the first element that is missing, or to the file where a directory should be.
func (n *node) find(path string) (e entry, code, stop int) {
	e.dir = n
	for at := 1; at < len(path); {
		end := at + indexSlash(path[at:])
		leaf, i := e.dir.child(path[at:end])
		if leaf == nil {
			return entry{}, CodeKeyNotFound, end
		}
		if e = leaf.entry(i); e.dir == nil && end < len(path) {
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

// put sets a path below the root n to e. Directories that are missing on the way come into being with the attributes. No element on
// the way may be a file.
func (n *node) put(path string, e entry, parents attributes) {
	at := 1
	for {
		end := at + indexSlash(path[at:])
		if end == len(path) {
			n.set(path[at:], e)
			return
		}
		sub := n.openDir(path[at:end])
		if sub == nil {
			sub = newDir(parents)
			n.set(path[at:end], entry{dir: sub})
		}
		n, at = sub, end+1
	}
}

// remove takes a path, which is there, out of the tree below n.
func (n *node) remove(path string) {
	at := 1
	for {
		end := at + indexSlash(path[at:])
		if end == len(path) {
			n.drop(path[at:])
			return
		}
		n, at = n.openDir(path[at:end]), end+1
	}
}

// openDir copies the way to a subdirectory, and its top node, and returns that; nil when there is none.
func (n *node) openDir(name string) *node {
	for n.inner {
		i := n.below(name)
		kid := n.kid(i).copy()
		n.slot[i] = unsafe.Pointer(kid)
		n = kid
	}
	i, found := n.search(name, 0)
	if !found {
		return nil
	}
	sub := n.kid(i).copy()
	n.slot[i] = unsafe.Pointer(sub)
	return sub
}

// set gives the directory with the top node n a child, or replaces the one it has.
func (n *node) set(name string, e entry) {
	right, bound := n.insert(name, e)
	if right == nil {
		return
	}
	// The top node stays where it is, since the directory above points at it: its two halves move one level down.
	left := n.copy()
	left.dir = nil
	*n = node{dir: n.dir, n: 2, inner: true, names: joinNames([]string{"", bound})}
	n.slot[0], n.slot[1] = unsafe.Pointer(left), unsafe.Pointer(right)
}

// insert is set for any node. When the node was full it gives its upper half to a new node and returns that with its lower
// bound.
func (n *node) insert(name string, e entry) (right *node, bound string) {
	if n.inner {
		i := n.below(name)
		kid := n.kid(i).copy()
		n.slot[i] = unsafe.Pointer(kid)
		added, bound := kid.insert(name, e)
		if added == nil {
			return nil, ""
		}
		return n.insertAt(i+1, bound, unsafe.Pointer(added), false)
	}
	p, isDir := e.file.p, e.dir != nil
	if isDir {
		p = unsafe.Pointer(e.dir)
	}
	i, found := n.search(name, 0)
	if !found {
		return n.insertAt(i, name, p, isDir)
	}
	n.slot[i] = p
	n.dirs = n.dirs&^(1<<i) | uint16(flag(isDir))<<i
	return nil, ""
}

func (n *node) insertAt(i int, name string, p unsafe.Pointer, isDir bool) (right *node, bound string) {
	target := n
	if n.n == fan {
		// Names that come in order fill their nodes wholly, since a node that grows at its end is not halved.
		half := fan / 2
		if i == fan {
			half = fan
		}
		right = &node{inner: n.inner}
		if half == fan {
			right.put1(name, p, isDir)
			return right, name
		}
		bound = n.name(half)
		n.moveTail(half, right)
		if i > half {
			target, i = right, i-half
		}
	}
	var buf [fan + 1]string
	list := target.list(buf[:0])
	list = append(list, "")
	copy(list[i+1:], list[i:])
	list[i] = name
	target.names = joinNames(list)
	copy(target.slot[i+1:], target.slot[i:target.n])
	target.slot[i] = p
	low := uint16(1)<<i - 1
	target.dirs = target.dirs&low | target.dirs&^low<<1 | uint16(flag(isDir))<<i
	target.n++
	return right, bound
}

// put1 makes an empty node one with a single slot.
func (n *node) put1(name string, p unsafe.Pointer, isDir bool) {
	if n.inner {
		name = ""
	}
	n.names, n.n, n.slot[0], n.dirs = joinNames([]string{name}), 1, p, uint16(flag(isDir))
}

// moveTail moves the slots from i on to an empty node.
func (n *node) moveTail(i int, to *node) {
	var buf [fan]string
	list := n.list(buf[:0])
	to.n = n.n - uint8(i)
	copy(to.slot[:], n.slot[i:n.n])
	to.dirs = n.dirs >> i
	if n.inner {
		list[i] = ""
	}
	to.names = joinNames(list[i:])
	clear(n.slot[i:])
	n.names, n.n, n.dirs = joinNames(list[:i]), uint8(i), n.dirs&(1<<i-1)
}

// drop takes a child, which is there, out of the directory with the top node n.
func (n *node) drop(name string) {
	n.delete(name)
	for n.inner && n.n == 1 {
		dir := n.dir
		*n = *n.kid(0)
		n.dir = dir
	}
}

func (n *node) delete(name string) {
	if !n.inner {
		i, _ := n.search(name, 0)
		n.deleteAt(i)
		return
	}
	i := n.below(name)
	kid := n.kid(i).copy()
	n.slot[i] = unsafe.Pointer(kid)
	kid.delete(name)
	if kid.n == 0 {
		n.deleteAt(i)
		return
	}
	if kid.n > fan/4 || n.n == 1 {
		return
	}
	// Few are left: they move in with a neighbour that has room.
	if i == int(n.n)-1 {
		i--
	}
	left, right := n.kid(i), n.kid(i+1)
	if left.n+right.n > fan*3/4 {
		return
	}
	var buf [fan]string
	list := right.list(left.list(buf[:0]))
	if left.inner {
		list[left.n] = n.name(i + 1)
	}
	merged := left.copy()
	copy(merged.slot[left.n:], right.slot[:right.n])
	merged.dirs |= right.dirs << left.n
	merged.n += right.n
	merged.names = joinNames(list)
	n.slot[i] = unsafe.Pointer(merged)
	n.deleteAt(i + 1)
}

func (n *node) deleteAt(i int) {
	var buf [fan]string
	list := n.list(buf[:0])
	list = append(list[:i], list[i+1:]...)
	if n.inner && len(list) > 0 {
		list[0] = ""
	}
	copy(n.slot[i:], n.slot[i+1:n.n])
	n.n--
	n.slot[n.n] = nil
	low := uint16(1)<<i - 1
	n.dirs = n.dirs&low | n.dirs>>1&^low
	n.names = joinNames(list)
}

// A builder makes a directory of children that come in order. It fills each node.
type builder struct {
	attributes attributes
	levels     []*level // leaves first
	last       string
	any        bool
}

// level collects the slots of one node that is being filled.
type level struct {
	node  node
	names []string
}

// add appends a child and says whether its name is above the one before.
func (b *builder) add(name string, e entry) bool {
	if b.any && name <= b.last {
		return false
	}
	b.any, b.last = true, name
	p, isDir := e.file.p, e.dir != nil
	if isDir {
		p = unsafe.Pointer(e.dir)
	}
	b.push(0, name, p, isDir)
	return true
}

func (b *builder) push(depth int, name string, p unsafe.Pointer, isDir bool) {
	if depth == len(b.levels) {
		b.levels = append(b.levels, &level{})
	}
	l := b.levels[depth]
	if l.node.n == fan {
		b.flush(depth)
	}
	l.node.slot[l.node.n] = p
	l.node.dirs |= uint16(flag(isDir)) << l.node.n
	l.node.n++
	l.names = append(l.names, name)
}

// flush finishes the node of a level and hands it to the level above.
func (b *builder) flush(depth int) {
	l := b.levels[depth]
	bound := l.names[0]
	done := b.finish(depth)
	b.push(depth+1, bound, unsafe.Pointer(done), false)
}

func (b *builder) finish(depth int) *node {
	l := b.levels[depth]
	done := l.node
	done.inner = depth > 0
	if done.inner {
		l.names[0] = ""
	}
	done.names = joinNames(l.names)
	l.node, l.names = node{}, l.names[:0]
	return &done
}

// done returns the directory.
func (b *builder) done() *node {
	if len(b.levels) == 0 {
		return newDir(b.attributes)
	}
	for depth := 0; depth < len(b.levels)-1; depth++ {
		b.flush(depth)
	}
	top := b.finish(len(b.levels) - 1)
	top.dir = &b.attributes
	return top
}
