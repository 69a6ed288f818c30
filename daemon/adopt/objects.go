package adopt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"stated.dev/stated/internal/boltcheck"
	"stated.dev/stated/internal/ids"
)

// eachRecord calls f for every pair of a bucket in a copy of the database at path. A missing file has no records.
func eachRecord(path, bucket string, f func(k, v []byte)) (err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := boltcheck.Path(path); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "stated-check-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	copied := filepath.Join(dir, "db")
	if err := copyPlain(path, copied, 0o600); err != nil {
		return err
	}
	db, err := bolt.Open(copied, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			f(k, v)
			return nil
		})
	})
}

func (c *checker) volumes(context.Context) error {
	recorded := map[string]string{} // name -> driver
	if err := eachRecord(c.path("volumes", "metadata.db"), "volumes", func(k, v []byte) {
		var doc struct{ Name, Driver string }
		if err := json.Unmarshal(v, &doc); err != nil {
			c.problem(Volumes, string(k), "its record cannot be read: %v", err)
			return
		}
		recorded[string(k)] = doc.Driver
	}); err != nil {
		c.problem(Volumes, "volumes/metadata.db", "the labels and options of volumes cannot be read: %v", err)
	}
	for _, e := range c.list("volumes") {
		name := e.Name()
		switch {
		case name == "metadata.db" || name == "backingFsBlockDev":
			continue
		case !e.IsDir():
			c.unknown(filepath.Join("volumes", name))
			continue
		}
		c.vols[name] = true
		if _, err := os.Stat(c.path("volumes", name, "_data")); err != nil {
			c.problem(Volumes, name, "its directory _data is missing")
		}
		opts, err := os.ReadFile(c.path("volumes", name, "opts.json"))
		if err == nil && !json.Valid(opts) {
			c.problem(Volumes, name, "its options, opts.json, cannot be read")
		}
	}
	for name, driver := range recorded {
		if driver != "" && driver != "local" {
			c.vols[name] = true
			c.note(Volumes, name, "a volume of the plug-in %s", driver)
		} else if !c.vols[name] {
			c.problem(Volumes, name, "it is recorded, but its directory is missing")
		}
	}
	c.count("volumes", len(c.vols))
	return nil
}

func (c *checker) networks(context.Context) error {
	const prefix = "docker/network/v1.0/network/"
	if err := eachRecord(c.path("network", "files", "local-kv.db"), "libnetwork", func(k, v []byte) {
		id, ok := strings.CutPrefix(string(k), prefix)
		if !ok {
			return
		}
		id = strings.TrimSuffix(id, "/")
		var doc struct {
			Name        string `json:"name"`
			NetworkType string `json:"networkType"`
		}
		if len(v) < 8 || json.Unmarshal(v[8:], &doc) != nil || doc.Name == "" {
			c.problem(Networks, id, "its record cannot be read")
			return
		}
		c.nets[id] = true
		if !supportedNetwork[doc.NetworkType] {
			c.problem(Networks, doc.Name, "stated has no network driver %q", doc.NetworkType)
		}
	}); err != nil {
		c.problem(Networks, "network/files/local-kv.db", "the networks cannot be read: %v", err)
	}
	c.count("networks", len(c.nets))
	return nil
}

var supportedNetwork = map[string]bool{"bridge": true, "host": true, "null": true}

// record is what is looked at of config.v2.json and hostconfig.json.
type record struct {
	ID, Name, Driver, Image string
	State                   struct {
		Running bool
		Pid     int
	}
	NetworkSettings struct {
		Networks map[string]struct{ NetworkID string }
	}
	MountPoints map[string]*struct{ Name, Driver, Type string }
}

func (c *checker) containers(ctx context.Context) error {
	n := 0
	names := map[string]string{}
	for _, e := range c.list("containers") {
		if err := ctx.Err(); err != nil {
			return err
		}
		id := e.Name()
		if !e.IsDir() || !ids.Valid(id) {
			c.unknown(filepath.Join("containers", id))
			continue
		}
		n++
		c.container(id, names)
	}
	c.count("containers", n)
	for _, driver := range c.report.Drivers {
		for _, e := range c.list("image", driver, "layerdb", "mounts") {
			id := e.Name()
			if len(id) > ids.Len && id[ids.Len] == '-' {
				id = id[:ids.Len] // of an image mount
			}
			if _, err := os.Stat(c.path("containers", id)); ids.Valid(id) && errors.Is(err, fs.ErrNotExist) {
				c.note(Layers, e.Name(), "a writable layer without a container; it is removed at the start")
			}
		}
	}
	return nil
}

func (c *checker) container(id string, names map[string]string) {
	var r record
	data, err := os.ReadFile(c.path("containers", id, "config.v2.json"))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		c.problem(Containers, id, "its record, config.v2.json, cannot be read: %v", err)
		return
	}
	if r.ID != id {
		c.problem(Containers, id, "its record is that of container %s", r.ID)
		return
	}
	host, err := os.ReadFile(c.path("containers", id, "hostconfig.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && !json.Valid(host) {
		c.problem(Containers, id, "its record hostconfig.json cannot be read")
	}
	if other := names[r.Name]; other != "" {
		c.problem(Containers, id, "its name %s is also that of %s", r.Name, other)
	}
	names[r.Name] = id
	if r.State.Running {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", r.State.Pid)); err == nil && r.State.Pid > 0 {
			c.note(Containers, id, "it is recorded as running, as process %d, which lives", r.State.Pid)
		} else {
			c.note(Containers, id, "it is recorded as running, but does not; it is taken as ended")
		}
	}
	whole, known := c.images[r.Driver]
	if !known {
		c.problem(Containers, id, "its root file system is kept by %q, which is no graph driver of this root (the containerd image store?); it is listed as foreign and not started", r.Driver)
		return
	}
	if r.Image != "" && !whole[r.Image] {
		c.note(Containers, id, "its image %s is missing or broken", r.Image)
	}
	c.writableLayer(id, r.Driver)
	for dest, m := range r.MountPoints {
		if m != nil && m.Name != "" && m.Type != "image" && !c.vols[m.Name] {
			c.problem(Containers, id, "its volume %s at %s is missing", m.Name, dest)
		}
	}
	for name, n := range r.NetworkSettings.Networks {
		if n.NetworkID != "" && !c.nets[n.NetworkID] && name != "bridge" && name != "host" && name != "none" {
			c.problem(Containers, id, "its network %s is missing", name)
		}
	}
}

func (c *checker) writableLayer(id, driver string) {
	dir := filepath.Join("image", driver, "layerdb", "mounts", id)
	mount, err := os.ReadFile(c.path(dir, "mount-id"))
	if err != nil || len(mount) == 0 {
		c.problem(Containers, id, "its writable layer has no record, %s/mount-id", dir)
		return
	}
	parent, err := os.ReadFile(c.path(dir, "parent"))
	chain := strings.TrimPrefix(string(parent), "sha256:")
	if err == nil && !c.chains[driver][chain] {
		c.problem(Containers, id, "the layer %s below its writable layer is missing or broken", parent)
		return
	}
	below := c.caches[chain]
	for _, name := range []string{"init-id", "mount-id"} {
		data, err := os.ReadFile(c.path(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		layer := string(data)
		if err == nil {
			err = c.driverHas(driver, layer)
		}
		if err == nil {
			err = c.lowers(driver, layer, below)
		}
		if err != nil {
			c.problem(Containers, id, "its writable layer is damaged: %s: %v", name, err)
			return
		}
		below = layer
	}
}
