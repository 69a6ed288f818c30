// Package boltcheck reads the pages of a bolt file before bbolt maps them: bbolt trusts its file, and a damaged one can
// make it panic, loop or take all memory. It never writes and has no locks.
package boltcheck

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// The layout of a bolt file, version 2, little-endian on every machine Docker runs on.
const (
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
	pageHeaderLen  = 16
	branchElemLen  = 16
	leafElemLen    = 16
	bucketHeadLen  = 16
	flagBranch     = 0x01
	flagLeaf       = 0x02
	flagFreelist   = 0x10
	leafIsBucket   = 0x01
	noFreelist     = ^uint64(0)
	maxBoltDepth   = 64
	manyFreeMarker = 0xFFFF
)

type boltMeta struct {
	pageSize       uint32
	root, freelist uint64
	pages, txid    uint64
}

// File walks the file as bbolt would, but believes nothing: every page number must lie in the file and be met
// once, every element in its page. Time and memory are bounded by the size of the file.
func File(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return errors.New("it is empty") // bbolt would start afresh, and nobody would hear of what was lost
	}
	v := verifier{r: f, size: info.Size(), met: map[uint64]bool{}}
	meta, err := v.newestMeta()
	if err != nil {
		return err
	}
	v.meta = meta
	if int64(meta.pages)*int64(meta.pageSize) > v.size || meta.pages > 1<<32 {
		return fmt.Errorf("file of %d bytes is too short for its %d pages", v.size, meta.pages)
	}
	if err := v.tree(meta.root, 0); err != nil {
		return err
	}
	return v.free(meta.freelist)
}

type verifier struct {
	r    io.ReaderAt
	size int64
	meta boltMeta
	met  map[uint64]bool // pages that something refers to
}

func (v *verifier) newestMeta() (boltMeta, error) {
	var best boltMeta
	found := false
	// The second meta page lies one page further, and the page size is only known from a meta page.
	offsets := []int64{0}
	for size := int64(1024); size <= 1<<16; size <<= 1 {
		offsets = append(offsets, size)
	}
	for _, off := range offsets {
		m, err := v.metaAt(off)
		if err != nil || (off != 0 && int64(m.pageSize) != off) {
			continue
		}
		if !found || m.txid > best.txid {
			best, found = m, true
		}
	}
	if !found {
		return best, errors.New("no valid meta page")
	}
	return best, nil
}

func (v *verifier) metaAt(off int64) (m boltMeta, err error) {
	var b [pageHeaderLen + 64]byte
	if _, err := v.r.ReadAt(b[:], off); err != nil {
		return m, err
	}
	d := b[pageHeaderLen:]
	sum := fnv.New64a()
	_, _ = sum.Write(d[:56]) // a hash takes everything
	if binary.LittleEndian.Uint32(d) != boltMagic || binary.LittleEndian.Uint32(d[4:]) != boltVersion ||
		binary.LittleEndian.Uint64(d[56:]) != sum.Sum64() {
		return m, errors.New("not a meta page")
	}
	m = boltMeta{
		pageSize: binary.LittleEndian.Uint32(d[8:]),
		root:     binary.LittleEndian.Uint64(d[16:]),
		freelist: binary.LittleEndian.Uint64(d[32:]),
		pages:    binary.LittleEndian.Uint64(d[40:]),
		txid:     binary.LittleEndian.Uint64(d[48:]),
	}
	if m.pageSize < 512 || m.pageSize > 1<<16 {
		return m, errors.New("impossible page size")
	}
	return m, nil
}

// page reads a page with its overflow and marks it as met.
func (v *verifier) page(id uint64) ([]byte, error) {
	if id < 2 || id >= v.meta.pages {
		return nil, fmt.Errorf("page %d lies outside of the file", id)
	}
	size := int64(v.meta.pageSize)
	var head [pageHeaderLen]byte
	if _, err := v.r.ReadAt(head[:], int64(id)*size); err != nil {
		return nil, err
	}
	if got := binary.LittleEndian.Uint64(head[:]); got != id {
		return nil, fmt.Errorf("page %d says it is page %d", id, got)
	}
	overflow := uint64(binary.LittleEndian.Uint32(head[12:]))
	if id+overflow >= v.meta.pages {
		return nil, fmt.Errorf("page %d runs over the end", id)
	}
	for p := id; p <= id+overflow; p++ {
		if v.met[p] {
			return nil, fmt.Errorf("page %d is used twice", p)
		}
		v.met[p] = true
	}
	data := make([]byte, int64(overflow+1)*size)
	_, err := v.r.ReadAt(data, int64(id)*size)
	return data, err
}

// tree checks the pages below id.
func (v *verifier) tree(id uint64, depth int) error {
	if depth > maxBoltDepth {
		return errors.New("tree is too deep")
	}
	data, err := v.page(id)
	if err != nil {
		return err
	}
	return v.elements(id, data, depth)
}

func (v *verifier) elements(id uint64, data []byte, depth int) error {
	flags, count := binary.LittleEndian.Uint16(data[8:]), int(binary.LittleEndian.Uint16(data[10:]))
	switch flags {
	case flagBranch:
		if count == 0 || pageHeaderLen+count*branchElemLen > len(data) {
			return fmt.Errorf("branch page %d cannot have %d elements", id, count)
		}
		for i := range count {
			at := pageHeaderLen + i*branchElemLen
			e := data[at:]
			pos, ksize := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
			if uint64(at)+uint64(pos)+uint64(ksize) > uint64(len(data)) {
				return fmt.Errorf("element %d of page %d lies outside of it", i, id)
			}
			if err := v.tree(binary.LittleEndian.Uint64(e[8:]), depth+1); err != nil {
				return err
			}
		}
	case flagLeaf:
		if pageHeaderLen+count*leafElemLen > len(data) {
			return fmt.Errorf("leaf page %d cannot have %d elements", id, count)
		}
		for i := range count {
			if err := v.leaf(id, data, i, depth); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("page %d has flags %#x", id, flags)
	}
	return nil
}

func (v *verifier) leaf(id uint64, data []byte, i, depth int) error {
	at := pageHeaderLen + i*leafElemLen
	e := data[at:]
	pos, ksize, vsize := binary.LittleEndian.Uint32(e[4:]), binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
	start := uint64(at) + uint64(pos) + uint64(ksize)
	if start+uint64(vsize) > uint64(len(data)) {
		return fmt.Errorf("element %d of page %d lies outside of it", i, id)
	}
	if binary.LittleEndian.Uint32(e)&leafIsBucket == 0 {
		return nil
	}
	if vsize < bucketHeadLen {
		return fmt.Errorf("bucket %d of page %d has no header", i, id)
	}
	value := data[start : start+uint64(vsize)]
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return v.tree(root, depth+1)
	}
	inline := value[bucketHeadLen:] // a small bucket's page follows its header
	if len(inline) < pageHeaderLen {
		return fmt.Errorf("inline bucket %d of page %d is cut", i, id)
	}
	if depth > maxBoltDepth {
		return errors.New("tree is too deep")
	}
	if binary.LittleEndian.Uint16(inline[8:]) != flagLeaf {
		return fmt.Errorf("inline bucket %d of page %d is no leaf", i, id)
	}
	return v.elements(id, inline, depth+1)
}

// free checks that no free page is in use or listed twice.
func (v *verifier) free(id uint64) error {
	if id == noFreelist {
		return nil
	}
	data, err := v.page(id)
	if err != nil {
		return err
	}
	if flags := binary.LittleEndian.Uint16(data[8:]); flags != flagFreelist {
		return fmt.Errorf("free list page %d has flags %#x", id, flags)
	}
	count := uint64(binary.LittleEndian.Uint16(data[10:]))
	ids := data[pageHeaderLen:]
	if count == manyFreeMarker && len(ids) >= 8 {
		count, ids = binary.LittleEndian.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return fmt.Errorf("free list cannot have %d entries", count)
	}
	for i := range count {
		p := binary.LittleEndian.Uint64(ids[i*8:])
		if p < 2 || p >= v.meta.pages || v.met[p] {
			return fmt.Errorf("free list entry %d names page %d", i, p)
		}
		v.met[p] = true
	}
	return nil
}

// Path checks the file at path. It takes no lock.
func Path(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return File(f)
}
