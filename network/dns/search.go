package dns

import (
	"bufio"
	"bytes"
	"io"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// searchBlock is the part of a zone file that is read in one go at the end of a search.
const searchBlock = 4 << 10

// zoneFile is a zone that is searched in place. Its methods may be called by many goroutines.
type zoneFile struct {
	path string

	mu sync.Mutex // guards all below; held for a search, which reads memory only
	f  *os.File   // nil: there is no file, or not a zone
	id fileID
}

// fileID tells a file from the one that replaces it.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func idOf(st *unix.Stat_t) fileID {
	return fileID{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// refreshLocked opens the file anew when it has been replaced.
func (z *zoneFile) refreshLocked() {
	var st unix.Stat_t
	err := unix.Stat(z.path, &st)
	switch {
	case err == nil && z.f != nil && idOf(&st) == z.id:
		return
	case err != nil && err != unix.ENOENT:
		return // what is open is the best there is
	}
	z.closeLocked()
	if err != nil {
		return
	}
	f, err := os.Open(z.path)
	if err != nil {
		return
	}
	header := make([]byte, len(zoneHeader))
	if _, err := f.ReadAt(header, 0); err != nil || string(header) != zoneHeader || unix.Fstat(int(f.Fd()), &st) != nil {
		_ = f.Close() // read-only
		return
	}
	z.f, z.id = f, idOf(&st)
}

func (z *zoneFile) closeLocked() {
	if z.f != nil {
		_ = z.f.Close() // read-only
		z.f = nil
	}
}

func (z *zoneFile) close() {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.closeLocked()
}

// addrs returns the addresses of a name in lower case, and whether the zone has it.
func (z *zoneFile) addrs(name string) (addrs []netip.Addr, known bool) {
	z.each(forwardKey+name+" ", func(value []byte) {
		if addr, err := netip.ParseAddr(string(value)); err == nil {
			addrs = append(addrs, addr)
		}
	})
	return addrs, len(addrs) > 0
}

// name returns the name of an address, or "".
func (z *zoneFile) name(addr netip.Addr) (name string) {
	z.each(reverseKey+addr.String()+" ", func(value []byte) { name = string(value) })
	return name
}

// each calls f with the rest of every line that begins with key.
func (z *zoneFile) each(key string, f func(value []byte)) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.refreshLocked()
	if z.f == nil {
		return
	}
	start, err := z.seekLocked([]byte(key))
	if err != nil {
		return // cut while it was read: as good as not there
	}
	lines := bufio.NewReaderSize(io.NewSectionReader(z.f, start, z.id.size-start), searchBlock)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return
		}
		line = line[:len(line)-1]
		if value, ok := bytes.CutPrefix(line, []byte(key)); ok {
			f(value)
		} else if string(line) > key {
			return
		}
	}
}

// seekLocked finds a line that is not after the first one that begins with key, and at most a block before it.
// Lines that start before lo are less than key, those that start at hi or later are not.
func (z *zoneFile) seekLocked(key []byte) (int64, error) {
	lo, hi := int64(len(zoneHeader)), z.id.size
	buf := make([]byte, 2*maxZoneLine)
	for hi-lo > searchBlock {
		mid := lo + (hi-lo)/2
		n, err := z.f.ReadAt(buf, mid)
		if err != nil && err != io.EOF {
			return 0, err
		}
		skip := bytes.IndexByte(buf[:n], '\n') + 1
		end := bytes.IndexByte(buf[skip:n], '\n')
		if skip == 0 || end < 0 {
			return 0, io.ErrUnexpectedEOF // no line is this long
		}
		if bytes.Compare(buf[skip:skip+end], key) < 0 {
			lo = mid + int64(skip+end) + 1
		} else {
			hi = mid
		}
	}
	return lo, nil
}
