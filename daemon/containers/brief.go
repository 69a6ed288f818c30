package containers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/volumes/mountpoint"
)

// brief is what a start and the common questions need of a record. It is kept for every container, in memory and in the
// index, so that the record of a container that nobody asks about is never decoded.
type brief struct {
	ID      string
	Name    string // without slash
	Driver  string
	Image   string
	Created time.Time
	Running bool
	Paused  bool
	// Active says that a start of the daemon has to look at the record: the container ran, holds what only a running
	// one should, or is to be started or removed.
	Active  bool
	Volumes []volumeClaim `json:",omitempty"`
	Images  []imageClaim  `json:",omitempty"`
}

// volumeClaim is one volume that a container uses.
type volumeClaim struct{ Name, Driver, Destination string }

// imageClaim is one image that a container mounts, and the layer on top of it.
type imageClaim struct{ Image, Layer string }

func (r *Record) brief() *brief {
	b := &brief{ID: r.ID, Name: r.name(), Driver: r.Driver, Image: r.Image, Created: r.Created,
		Running: r.State.Running, Paused: r.State.Paused,
		Active: r.State.Running || hasRuntimeState(r) || startsAtBoot(r) || (r.HostConfig.AutoRemove && r.HasBeenStartedBefore)}
	for _, m := range mountpoint.Sorted(r.MountPoints) {
		if m.IsVolume() {
			b.Volumes = append(b.Volumes, volumeClaim{m.Name, m.Driver, m.Destination})
		}
		if m.Type == mount.TypeImage {
			b.Images = append(b.Images, imageClaim{m.Spec.Source, r.imageLayer(m)})
		}
	}
	return b
}

// rec returns the container's record, and decodes it when this is the first who asks. A record that cannot be read any
// more, though it could be when the index was written, makes the container a broken one.
func (c *Container) rec() *Record {
	if r := c.record.Load(); r != nil {
		return r
	}
	c.decode.Lock()
	defer c.decode.Unlock()
	if r := c.record.Load(); r != nil {
		return r
	}
	r, err := readRecord(c.dir, c.id)
	if err != nil {
		r = brokenRecord(c.id, err)
		r.Name = "/" + c.brief.Load().Name
		c.setBroken(err)
	}
	c.record.Store(r)
	return r
}

// set makes r the container's record.
func (c *Container) set(r *Record) {
	c.record.Store(r)
	c.brief.Store(r.brief())
}

// readRecord reads and decodes the two documents in a container's directory.
func readRecord(dir, id string) (*Record, error) {
	config, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return nil, err
	}
	host, err := os.ReadFile(filepath.Join(dir, hostConfigFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return decodeRecord(id, config, host)
}

// stamp tells whether a file is the one that the index was made from: every change makes a new file by rename.
type stamp struct {
	Inode uint64
	Size  int64
	MTime int64 // nanoseconds
	CTime int64
}

// indexEntry is one container in the index.
type indexEntry struct {
	Brief        *brief
	Config, Host stamp
}

// index is the rebuildable summary of all records. An entry counts only while both files of its container are the
// ones it was made from, so what a dockerd wrote in between is noticed.
type index struct {
	Version    int
	Containers []indexEntry
}

// indexVersion changes whenever a brief of older code would mislead.
const indexVersion = 2

func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return stamp{}, err
	}
	return stamp{Inode: st.Ino, Size: st.Size, MTime: st.Mtim.Nano(), CTime: st.Ctim.Nano()}, nil
}

func stampsOf(dir string) (config, host stamp, err error) {
	if config, err = stampOf(filepath.Join(dir, configFile)); err != nil {
		return
	}
	host, err = stampOf(filepath.Join(dir, hostConfigFile))
	return
}

// readIndex returns the index by container id; nothing when there is none, or it cannot be used.
func (s *Service) readIndex() map[string]indexEntry {
	data, err := os.ReadFile(s.cfg.IndexPath)
	if err != nil {
		return nil
	}
	var ix index
	if json.Unmarshal(data, &ix) != nil || ix.Version != indexVersion {
		return nil
	}
	entries := make(map[string]indexEntry, len(ix.Containers))
	for _, e := range ix.Containers {
		if e.Brief != nil {
			entries[e.Brief.ID] = e
		}
	}
	return entries
}

// writeIndex replaces the index. It is not flushed: after a power cut it is missing, useless or right.
func (s *Service) writeIndex() error {
	ix := index{Version: indexVersion}
	for _, c := range s.all() {
		if c.isBroken() {
			continue
		}
		if e, ok := c.indexEntry(); ok {
			ix.Containers = append(ix.Containers, e)
		}
	}
	data, err := json.Marshal(ix)
	if err != nil {
		return fmt.Errorf("write the index of containers: %w", err)
	}
	return atomicfile.WriteNoSync(s.cfg.IndexPath, data, 0o600)
}

// indexEntry describes the container as its files are now: no commit can come between the two.
func (c *Container) indexEntry() (indexEntry, bool) {
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	if c.unwritten {
		return indexEntry{}, false
	}
	config, host, err := stampsOf(c.dir)
	if err != nil {
		return indexEntry{}, false
	}
	return indexEntry{Brief: c.brief.Load(), Config: config, Host: host}, true
}
