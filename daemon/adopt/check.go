package adopt

import (
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"stated.dev/stated/internal/ids"
)

// Subsystems of a report, in the order of its parts.
const (
	Layers     = "layers"
	Images     = "images"
	Volumes    = "volumes"
	Networks   = "networks"
	Containers = "containers"
	Root       = "root"
)

// Item is one thing of a data root with what is to be said about it.
type Item struct {
	Subsystem string
	Object    string // an id, a name, or a path relative to the root
	Text      string
}

func (i Item) String() string { return fmt.Sprintf("%s %s: %s", i.Subsystem, i.Object, i.Text) }

// Count is how many objects of a kind there are.
type Count struct {
	Kind string
	N    int
}

// Report is what Check found.
type Report struct {
	Root     string
	Drivers  []string // graph drivers with images or containers
	Counts   []Count
	Problems []Item   // what would not work, or not be there
	Notes    []Item   // what is left alone, and what is to be known
	Unknown  []string // paths that nothing in Docker's layout explains
}

// topLevel is what a data root holds, and what is left alone in it.
var topLevel = map[string]string{
	"engine-id": "", "containers": "", "image": "", "volumes": "", "network": "", "runtimes": "", "tmp": "", ".stated": "",
	"buildkit": "the cache of BuildKit, which is left alone", "containerd": "state of a containerd that dockerd ran, which is left alone",
	"plugins": "plug-ins, which are left alone", "trust": "keys of content trust, which are left alone", "builder": "the cache of an old builder, which is left alone",
	"swarm": "",
}

var graphDrivers = []string{"overlay2", "fuse-overlayfs", "btrfs", "devicemapper", "vfs", "zfs", "overlay", "aufs"}

var remapped = regexp.MustCompile(`^\d+\.\d+$`)

// checker collects a report.
type checker struct {
	root   string
	report Report
	chains map[string]map[string]bool // driver -> chain ids that are whole
	caches map[string]string          // chain id -> the driver's id
	images map[string]map[string]bool // driver -> image ids that are whole
	vols   map[string]bool
	nets   map[string]bool // ids
}

// Check reads the data root and reports. The error is for a root that cannot be read at all.
func Check(ctx context.Context, root string) (Report, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return Report{}, err
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return Report{}, fmt.Errorf("read the data root: %w", err)
	}
	c := &checker{root: root, report: Report{Root: root}, chains: map[string]map[string]bool{}, caches: map[string]string{}, images: map[string]map[string]bool{}, vols: map[string]bool{}, nets: map[string]bool{}}
	c.top(entries)
	for _, step := range []func(context.Context) error{c.graphs, c.volumes, c.networks, c.containers} {
		if err := step(ctx); err != nil {
			return c.report, err
		}
		if err := ctx.Err(); err != nil {
			return c.report, err
		}
	}
	return c.report, nil
}

func (c *checker) path(elem ...string) string {
	return filepath.Join(append([]string{c.root}, elem...)...)
}

func (c *checker) problem(subsystem, object, format string, args ...any) {
	c.report.Problems = append(c.report.Problems, Item{subsystem, object, fmt.Sprintf(format, args...)})
}

func (c *checker) note(subsystem, object, format string, args ...any) {
	c.report.Notes = append(c.report.Notes, Item{subsystem, object, fmt.Sprintf(format, args...)})
}

func (c *checker) count(kind string, n int) {
	c.report.Counts = append(c.report.Counts, Count{kind, n})
}

func (c *checker) unknown(path string) { c.report.Unknown = append(c.report.Unknown, path) }

// list reads a directory below the root; a missing one is empty.
func (c *checker) list(elem ...string) []fs.DirEntry {
	entries, err := os.ReadDir(c.path(elem...))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.problem(Root, filepath.Join(elem...), "cannot be read: %v", err)
	}
	return entries
}

func (c *checker) top(entries []fs.DirEntry) {
	for _, e := range entries {
		name := e.Name()
		switch text, known := topLevel[name]; {
		case remapped.MatchString(name):
			c.note(Root, name, "the data root of a daemon with remapped users: check it on its own")
		case known && text != "" && hasFiles(c.path(name)):
			c.note(Root, name, "%s", text)
		case !known && !slices.Contains(graphDrivers, name):
			c.unknown(name)
		}
	}
	if _, err := os.Stat(c.path("swarm", "docker-state.json")); err == nil {
		c.note(Root, "swarm", "this host was in a swarm; stated leaves its state alone and does not join it")
	}
	if data, err := os.ReadFile(c.path("engine-id")); err == nil && len(strings.TrimSpace(string(data))) == 0 {
		c.note(Root, "engine-id", "is empty; a new id will be made")
	}
	if journalPending(c.root) {
		c.note(Root, ".stated/journal", "changes that may not be in Docker's files yet after a power cut: start stated, or run \"stated handback\"")
	}
	if why := LiveDockerd(c.root); why != nil {
		c.note(Root, ".", "%v", why)
	}
}

// hasFiles reports whether anything but directories is below dir.
func hasFiles(dir string) bool {
	found := errors.New("found")
	return errors.Is(filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			return found
		}
		return nil
	}), found)
}

func journalPending(root string) bool {
	for _, name := range []string{"journal", "journal.old"} {
		if info, err := os.Stat(filepath.Join(root, ".stated", name)); err == nil && info.Size() > 0 {
			return true
		}
	}
	return false
}

// graphs checks the layers and images of every graph driver.
func (c *checker) graphs(ctx context.Context) error {
	layers, images, tags := 0, 0, 0
	for _, e := range c.list("image") {
		if !e.IsDir() {
			c.unknown("image/" + e.Name())
			continue
		}
		driver := e.Name()
		c.report.Drivers = append(c.report.Drivers, driver)
		n, err := c.layers(ctx, driver)
		if err != nil {
			return err
		}
		layers += n
		images += c.imagesOf(driver)
		tags += c.repositories(driver)
		for _, sub := range c.list("image", driver) {
			if !slices.Contains([]string{"repositories.json", "imagedb", "layerdb", "distribution"}, sub.Name()) {
				c.unknown(filepath.Join("image", driver, sub.Name()))
			}
		}
	}
	c.count("layers", layers)
	c.count("images", images)
	c.count("image references", tags)
	return nil
}

type layerRecord struct{ diff, parent, cache string }

// layers checks layerdb: each layer's files, its id, its parent, and whether the driver has it.
func (c *checker) layers(ctx context.Context, driver string) (int, error) {
	all := map[string]layerRecord{}
	bad := map[string]string{}
	for _, e := range c.list("image", driver, "layerdb", "sha256") {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		chain := e.Name()
		dir := filepath.Join("image", driver, "layerdb", "sha256", chain)
		if !ids.Valid(chain) {
			if strings.HasSuffix(chain, "-removing") {
				c.note(Layers, chain, "a layer whose removal was interrupted; it is removed at the start")
			} else {
				c.unknown(dir)
			}
			continue
		}
		r, err := c.layerRecord(driver, dir)
		if err == nil {
			want := strings.TrimPrefix(r.diff, "sha256:")
			if r.parent != "" {
				sum := sha256.Sum256([]byte(r.parent + " " + r.diff))
				want = hex.EncodeToString(sum[:])
			}
			if want != chain {
				err = fmt.Errorf("its diff and parent belong to layer %s", want)
			}
		}
		if err != nil {
			bad[chain] = err.Error()
		}
		all[chain] = r
		c.caches[chain] = r.cache
	}
	for chain, r := range all {
		if bad[chain] == "" {
			if err := c.lowers(driver, r.cache, all[strings.TrimPrefix(r.parent, "sha256:")].cache); err != nil {
				bad[chain] = err.Error()
			}
		}
	}
	whole := map[string]bool{}
	for chain := range all {
		whole[chain] = true
		for at := chain; ; {
			if why := bad[at]; why != "" {
				whole[chain] = false
				if at == chain {
					c.problem(Layers, chain, "%s", why)
				} else {
					c.problem(Layers, chain, "its parent %s is broken", at)
				}
				break
			}
			parent := strings.TrimPrefix(all[at].parent, "sha256:")
			if parent == "" {
				break
			}
			if _, ok := all[parent]; !ok {
				whole[chain] = false
				c.problem(Layers, chain, "its parent %s is missing", parent)
				break
			}
			at = parent
		}
	}
	slices.SortFunc(c.report.Problems, func(a, b Item) int {
		return cmp.Or(cmp.Compare(a.Subsystem, b.Subsystem), cmp.Compare(a.Object, b.Object))
	})
	c.chains[driver] = whole
	return len(all), nil
}

func (c *checker) layerRecord(driver, dir string) (layerRecord, error) {
	var r layerRecord
	for _, f := range []struct {
		name     string
		into     *string
		optional bool
	}{{"diff", &r.diff, false}, {"cache-id", &r.cache, false}, {"parent", &r.parent, true}} {
		data, err := os.ReadFile(c.path(dir, f.name))
		if errors.Is(err, fs.ErrNotExist) && f.optional {
			continue
		}
		if err != nil {
			return r, fmt.Errorf("file %s is missing or cannot be read: %w", f.name, err)
		}
		*f.into = strings.TrimSpace(string(data))
		if f.name != "cache-id" && !isDigest(*f.into) {
			return r, fmt.Errorf("file %s holds no digest", f.name)
		}
	}
	size, err := os.ReadFile(c.path(dir, "size"))
	if err != nil {
		return r, fmt.Errorf("file size is missing or cannot be read: %w", err)
	}
	if s := strings.TrimSpace(string(size)); s == "" || strings.Trim(s, "0123456789") != "" {
		return r, errors.New("file size holds no number")
	}
	if err := readGzip(c.path(dir, "tar-split.json.gz")); err != nil {
		return r, fmt.Errorf("file tar-split.json.gz: %w", err)
	}
	return r, c.driverHas(driver, r.cache)
}

func readGzip(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, z)
	return err
}

// driverHas checks the directory of a layer as far as the layouts of drivers are known.
func (c *checker) driverHas(driver, id string) error {
	if id == "" || strings.ContainsAny(id, "/\x00") {
		return errors.New("file cache-id holds no id")
	}
	switch driver {
	case "overlay2", "fuse-overlayfs":
		for _, name := range []string{"diff", "link"} {
			if _, err := os.Stat(c.path(driver, id, name)); err != nil {
				return fmt.Errorf("%s/%s/%s is missing", driver, id, name)
			}
		}
		link, err := os.ReadFile(c.path(driver, id, "link"))
		if err != nil || len(link) == 0 || strings.ContainsAny(string(link), "/\x00") {
			return fmt.Errorf("%s/%s/link is damaged", driver, id)
		}
		if target, err := os.Readlink(c.path(driver, "l", string(link))); err != nil || target != filepath.Join("..", id, "diff") {
			return fmt.Errorf("%s/%s/link does not agree with %s/l; it is repaired when stated starts on the root for the first time", driver, id, driver)
		}
	case "vfs":
		if _, err := os.Stat(c.path(driver, "dir", id)); err != nil {
			return fmt.Errorf("vfs/dir/%s is missing", id)
		}
	case "btrfs":
		if _, err := os.Stat(c.path(driver, "subvolumes", id)); err != nil {
			return fmt.Errorf("btrfs/subvolumes/%s is missing", id)
		}
	}
	return nil
}

// lowers checks that the list of layers below one is its parent's with the parent before it.
func (c *checker) lowers(driver, id, parent string) error {
	if driver != "overlay2" && driver != "fuse-overlayfs" {
		return nil
	}
	read := func(id, name string) string {
		data, err := os.ReadFile(c.path(driver, id, name))
		if err != nil {
			return "" // an absent list is an empty one
		}
		return string(data)
	}
	want := ""
	if parent != "" {
		want = "l/" + read(parent, "link")
		if more := read(parent, "lower"); more != "" {
			want += ":" + more
		}
	}
	if have := read(id, "lower"); have != want {
		return fmt.Errorf("%s/%s/lower does not list the layers below; it is repaired when stated starts on the root for the first time", driver, id)
	}
	return nil
}

func isDigest(s string) bool {
	hash, ok := strings.CutPrefix(s, "sha256:")
	return ok && ids.Valid(hash)
}

// imagesOf checks the image configurations of a driver.
func (c *checker) imagesOf(driver string) int {
	c.images[driver] = map[string]bool{}
	n := 0
	for _, e := range c.list("image", driver, "imagedb", "content", "sha256") {
		id := e.Name()
		if !ids.Valid(id) {
			c.unknown(filepath.Join("image", driver, "imagedb/content/sha256", id))
			continue
		}
		n++
		if err := c.image(driver, id); err != nil {
			c.problem(Images, "sha256:"+id, "%v", err)
			continue
		}
		c.images[driver]["sha256:"+id] = true
	}
	return n
}

func (c *checker) image(driver, id string) error {
	data, err := os.ReadFile(c.path("image", driver, "imagedb", "content", "sha256", id))
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != id {
		return fmt.Errorf("its configuration is damaged: %d bytes with another digest", len(data))
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return fmt.Errorf("its configuration cannot be read: %w", err)
	}
	chain := ""
	for _, diff := range config.RootFS.DiffIDs {
		if chain == "" {
			chain = diff
		} else {
			sum := sha256.Sum256([]byte(chain + " " + diff))
			chain = "sha256:" + hex.EncodeToString(sum[:])
		}
	}
	if chain != "" && !c.chains[driver][strings.TrimPrefix(chain, "sha256:")] {
		return fmt.Errorf("its layer %s is missing or broken", chain)
	}
	return nil
}

// repositories checks the references and returns how many there are.
func (c *checker) repositories(driver string) int {
	rel := filepath.Join("image", driver, "repositories.json")
	data, err := os.ReadFile(c.path(rel))
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	var doc struct{ Repositories map[string]map[string]string }
	if err == nil {
		err = json.Unmarshal(data, &doc)
	}
	if err != nil {
		c.problem(Images, rel, "the names of images cannot be read: %v", err)
		return 0
	}
	n := 0
	for _, refs := range doc.Repositories {
		for ref, id := range refs {
			n++
			if !c.images[driver][id] {
				c.problem(Images, ref, "names image %s, which is missing or broken", id)
			}
		}
	}
	return n
}
