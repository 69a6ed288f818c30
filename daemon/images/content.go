package images

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"stated.dev/stated/internal/atomicfile"
)

// stagedPrefix begins the name of a configuration file that is not yet, or no longer, an image's. What follows is
// the file's digest. Docker passes over names that are no digest.
const stagedPrefix = ".stated-"

// Names of the files below metadata/sha256/<hash>, as Docker has them.
const (
	metaParent      = "parent"
	metaLastUpdated = "lastUpdated"
)

// maxConfig bounds an image configuration and the other documents that describe images. Registries allow 4 MB.
const maxConfig = 8 << 20

// content is the directory of image configurations and what is noted about each. It has no lock of its own.
type content struct {
	dir  string // imagedb/content/sha256
	meta string // imagedb/metadata/sha256
}

func openContent(imagedb string) (content, error) {
	c := content{
		dir:  filepath.Join(imagedb, "content", "sha256"),
		meta: filepath.Join(imagedb, "metadata", "sha256"),
	}
	for _, dir := range []string{c.dir, c.meta} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return content{}, fmt.Errorf("create image database: %w", err)
		}
	}
	return c, nil
}

func (c content) path(id digest.Digest) string { return filepath.Join(c.dir, id.Encoded()) }

func (c content) stagedPath(id digest.Digest) string {
	return filepath.Join(c.dir, stagedPrefix+id.Encoded())
}

// scan returns the digests of the stored configurations and of the staged ones, and removes the temporary files
// that a crash left. Other names are left alone.
func (c content) scan() (stored, staged []digest.Digest, err error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read image database: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".tmp-") {
			_ = os.Remove(filepath.Join(c.dir, name)) // litter: the next start tries again
			continue
		}
		hash, isStaged := strings.CutPrefix(name, stagedPrefix)
		id := digest.NewDigestFromEncoded(digest.SHA256, hash)
		switch {
		case id.Validate() != nil:
		case isStaged:
			staged = append(staged, id)
		default:
			stored = append(stored, id)
		}
	}
	return stored, staged, nil
}

// read returns a configuration's bytes after checking them against their name.
func (c content) read(id digest.Digest) ([]byte, error) {
	f, err := os.Open(c.path(id))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readBounded(f, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("read configuration of image %s: %w", id, err)
	}
	if actual := digest.FromBytes(data); actual != id {
		return nil, fmt.Errorf("configuration of image %s is damaged: its digest is %s", id, actual)
	}
	return data, nil
}

// stage writes a configuration beside the others and waits for its bytes, but not for its name: see sync.
func (c content) stage(id digest.Digest, data []byte) (err error) {
	f, err := os.OpenFile(c.stagedPath(id), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("stage configuration of image %s: %w", id, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = os.Remove(c.stagedPath(id)) // the start sweeps it otherwise
		return fmt.Errorf("stage configuration of image %s: %w", id, err)
	}
	return nil
}

// publish gives a staged configuration its name. Sync makes it durable.
func (c content) publish(id digest.Digest) error {
	return os.Rename(c.stagedPath(id), c.path(id))
}

// withdraw is the reverse of publish.
func (c content) withdraw(id digest.Digest) error {
	return os.Rename(c.path(id), c.stagedPath(id))
}

// dropStaged deletes a staged configuration and what is noted about it.
func (c content) dropStaged(id digest.Digest) error {
	if err := os.RemoveAll(filepath.Join(c.meta, id.Encoded())); err != nil {
		return err
	}
	if err := os.Remove(c.stagedPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sync makes the names of configurations durable.
func (c content) sync() error { return atomicfile.SyncDir(c.dir) }

// setMeta notes a fact about an image, with the durability of write.
func (c content) setMeta(id digest.Digest, key string, value []byte, write func(string, []byte, fs.FileMode) error) error {
	dir := filepath.Join(c.meta, id.Encoded())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("note %s of image %s: %w", key, id, err)
	}
	if err := write(filepath.Join(dir, key), value, 0o600); err != nil {
		return fmt.Errorf("note %s of image %s: %w", key, id, err)
	}
	return nil
}

func (c content) dropMeta(id digest.Digest, key string) error {
	err := os.Remove(filepath.Join(c.meta, id.Encoded(), key))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s of image %s: %w", key, id, err)
	}
	return nil
}

// parent returns the id of the image that this one was built on, or nothing.
func (c content) parent(id digest.Digest) digest.Digest {
	data, err := os.ReadFile(filepath.Join(c.meta, id.Encoded(), metaParent))
	if err != nil {
		return "" // most images have none
	}
	parent := digest.Digest(bytes.TrimSpace(data))
	if checkDigest(parent) != nil {
		return ""
	}
	return parent
}

// lastTagged returns when the image was last given a tag on this host, or the zero time.
func (c content) lastTagged(id digest.Digest) time.Time {
	data, err := os.ReadFile(filepath.Join(c.meta, id.Encoded(), metaLastUpdated))
	if err != nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, string(bytes.TrimSpace(data)))
	if err != nil {
		return time.Time{}
	}
	return t
}
