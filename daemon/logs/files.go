package logs

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	gzSuffix  = ".gz"
	newSuffix = ".new" // the next live file, before it gets its name
	tmpSuffix = ".tmp" // a compressed file that is not complete
)

// rotatedPath names the file that has been rotated n times, as Docker does.
func rotatedPath(path string, n int) string { return path + "." + strconv.Itoa(n) }

// gzInfo is stored as JSON in the extra field of a compressed file's gzip header. Docker writes and reads lastTime;
// source is ours: it names the file that was compressed, so that a reader that has read it knows it again.
type gzInfo struct {
	LastTime time.Time `json:"lastTime"`
	Source   uint64    `json:"source,omitempty"` // inode number
}

// source is one file of a log, opened.
type source struct {
	f     *os.File
	inode uint64
	rank  int  // 0 for the live file, n for one rotated n times
	gz    bool // compressed
	info  gzInfo
}

func (s *source) Close() error { return s.f.Close() }

// holds reports whether s is the file that old is, or its compressed form. Old is still open, so that its inode number
// has not been given to another file.
func (s *source) holds(old *source) bool {
	if s.gz && !old.gz {
		return s.info.Source == old.inode
	}
	return s.gz == old.gz && s.inode == old.inode
}

// openSources opens all files of a log, oldest first, as they were at one instant: while they are opened the writer
// may rotate, so the names are looked at again and the whole is repeated when one of them means another file. The
// numbers cannot be used again meanwhile, because the files are held open.
func openSources(o Options) ([]*source, error) {
	const attempts = 1000 // a log cannot be rotated as fast as it is listed, again and again
	for range attempts {
		sources, err := openOnce(o)
		if err != nil {
			return nil, err
		}
		same, err := unchanged(o, sources)
		if err == nil && same {
			return sources, nil
		}
		closeAll(sources)
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("open log %s: it is rotated faster than it can be listed", o.Path)
}

func openOnce(o Options) (sources []*source, err error) {
	for rank := o.maxFiles() - 1; rank >= 0; rank-- {
		s, err := openRank(o.Path, rank)
		if err != nil {
			closeAll(sources)
			return nil, fmt.Errorf("open log: %w", err)
		}
		if s != nil {
			sources = append(sources, s)
		}
	}
	return sources, nil
}

// openRank opens the file of this rank, nil when there is none. While a file is compressed both forms exist; the
// plain one is whole.
func openRank(path string, rank int) (*source, error) {
	name := path
	if rank > 0 {
		name = rotatedPath(path, rank)
	}
	s, err := openPlain(name, rank)
	if s != nil || err != nil || rank == 0 {
		return s, err
	}
	s, err = openPlain(name+gzSuffix, rank)
	if s == nil || err != nil {
		return s, err
	}
	s.gz = true
	s.info = readGzInfo(s.f)
	return s, nil
}

func openPlain(name string, rank int) (*source, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	inode, err := inodeOf(f)
	if err != nil {
		_ = f.Close() // read-only
		return nil, err
	}
	return &source{f: f, inode: inode, rank: rank}, nil
}

// unchanged reports whether every name still means the file that was opened by it.
func unchanged(o Options, sources []*source) (bool, error) {
	for rank := o.maxFiles() - 1; rank >= 0; rank-- {
		name := o.Path
		if rank > 0 {
			name = rotatedPath(o.Path, rank)
		}
		inode, err := inodeAt(name)
		if inode == 0 && err == nil && rank > 0 {
			inode, err = inodeAt(name + gzSuffix)
		}
		if err != nil {
			return false, err
		}
		var opened uint64
		if len(sources) > 0 && sources[0].rank == rank {
			opened = sources[0].inode
			sources = sources[1:]
		}
		if inode != opened {
			return false, nil
		}
	}
	return true, nil
}

func closeAll(sources []*source) {
	for _, s := range sources {
		_ = s.Close() // read-only
	}
}

func inodeOf(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return st.Ino, nil
}

// inodeAt returns 0 when there is no such file.
func inodeAt(name string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(name, &st)
	if err == unix.ENOENT {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("stat %s: %w", name, err)
	}
	return st.Ino, nil
}

// readGzInfo returns what the header tells, nothing when it tells nothing, and leaves the file at its start.
func readGzInfo(f *os.File) (info gzInfo) {
	if z, err := gzip.NewReader(io.NewSectionReader(f, 0, 1<<62)); err == nil {
		_ = json.Unmarshal(z.Extra, &info) // written by an older writer: then nothing is known
	}
	return info
}
