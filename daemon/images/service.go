package images

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	api "stated.dev/stated/api/router/images"
)

// Options are what a Service needs. Dir, TempDir, Layers, Containers and Events must be set.
type Options struct {
	Dir        string // image/<driver> of the data root; created when missing
	TempDir    string // for archives on their way in and out; created when missing
	LastDir    string // where the previous generation of repositories.json is kept; empty: nowhere
	Layers     Layers
	Containers Containers
	Events     Publisher
	Logger     *slog.Logger // nil: slog.Default
	Version    string       // written as docker_version into configurations made here
}

// Service keeps images. Its methods may be called at the same time.
type Service struct {
	layers     Layers
	containers Containers
	events     Publisher
	log        *slog.Logger
	tempDir    string
	refsPath   string
	lastRefs   string
	version    string
	content    content

	pruning atomic.Bool // one prune at a time

	writing sync.Mutex // serialises changes on disk; taken before mu
	mu      sync.RWMutex
	images  map[digest.Digest]*record // guarded by mu
	ids     []digest.Digest           // sorted keys of images; guarded by mu
	refs    *refSet                   // guarded by mu; never nil
	broken  map[digest.Digest]Problem // images that are not usable; guarded by mu
	general []Problem                 // problems of no one image; written by Open only
}

var _ api.Backend = (*Service)(nil)

// record is an image that can be used: its configuration is sound and it holds one reference on its top layer.
type record struct {
	id      digest.Digest
	chain   digest.Digest // empty: no layers
	diffIDs []digest.Digest
	created time.Time // zero: not known

	parent   digest.Digest              // guarded by Service.mu; empty: none
	children map[digest.Digest]struct{} // guarded by Service.mu

	parsed atomic.Pointer[document] // read on demand, then kept
}

// document is a configuration in both its forms.
type document struct {
	raw    []byte
	config *config
}

// Problem is something Open found and left as it was.
type Problem struct {
	Image digest.Digest // empty: concerns no one image
	Layer digest.Digest // chain id of the missing layer, empty when that is not the trouble
	Err   error
}

// Open reads the images below o.Dir and takes a layer reference for each. An image that cannot be used is reported
// by Problems and left as it is.
func Open(ctx context.Context, o Options) (*Service, error) {
	s := &Service{
		layers:     o.Layers,
		containers: o.Containers,
		events:     o.Events,
		log:        o.Logger,
		tempDir:    o.TempDir,
		refsPath:   filepath.Join(o.Dir, "repositories.json"),
		version:    o.Version,
		images:     map[digest.Digest]*record{},
		broken:     map[digest.Digest]Problem{},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	for _, dir := range []string{o.Dir, o.TempDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open images: %w", err)
		}
	}
	if o.LastDir != "" {
		if err := os.MkdirAll(o.LastDir, 0o700); err != nil {
			return nil, fmt.Errorf("open images: %w", err)
		}
		s.lastRefs = filepath.Join(o.LastDir, "repositories.json")
	}
	var err error
	if s.content, err = openContent(filepath.Join(o.Dir, "imagedb")); err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	// Litter of a crash; what cannot be removed now is removed by a later start.
	if litter, err := filepath.Glob(filepath.Join(o.Dir, ".tmp-repositories.json-*")); err == nil {
		for _, path := range litter {
			_ = os.Remove(path)
		}
	}
	refs, damaged, problem, err := loadRefs(s.refsPath, s.lastRefs)
	if err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	s.refs = refs
	if problem != nil {
		s.general = append(s.general, *problem)
	}
	if err := s.restore(ctx, damaged); err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	return s, nil
}

// Close waits for changes under way. It keeps the layer references: a layer that loses its last one is deleted, so
// they end with the process.
func (s *Service) Close() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return nil
}

// Problems returns what is wrong with images that are on disk and cannot be used.
func (s *Service) Problems() []Problem {
	s.mu.RLock()
	defer s.mu.RUnlock()
	problems := slices.Clone(s.general)
	for _, p := range s.broken {
		problems = append(problems, p)
	}
	slices.SortFunc(problems, func(a, b Problem) int {
		switch {
		case a.Image < b.Image:
			return -1
		case a.Image > b.Image:
			return 1
		}
		return 0
	})
	return problems
}

// Count returns how many images there are, as `info` shows it.
func (s *Service) Count() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.images)
}

// document returns the configuration of r, from disk if it was not read yet.
func (s *Service) document(r *record) (*document, error) {
	if d := r.parsed.Load(); d != nil {
		return d, nil
	}
	raw, err := s.content.read(r.id)
	if err != nil {
		return nil, err
	}
	c, err := parseConfig(raw)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", r.id, err)
	}
	d := &document{raw, c}
	r.parsed.Store(d)
	return d, nil
}

// addLocked makes r an image. The caller holds mu.
func (s *Service) addLocked(r *record) {
	s.images[r.id] = r
	if at, found := slices.BinarySearch(s.ids, r.id); !found {
		s.ids = slices.Insert(s.ids, at, r.id)
	}
	delete(s.broken, r.id)
	if parent := s.images[r.parent]; parent != nil {
		parent.children[r.id] = struct{}{}
	}
}

// removeLocked forgets r. The caller holds mu.
func (s *Service) removeLocked(r *record) {
	delete(s.images, r.id)
	if at, found := slices.BinarySearch(s.ids, r.id); found {
		s.ids = slices.Delete(s.ids, at, at+1)
	}
	if parent := s.images[r.parent]; parent != nil {
		delete(parent.children, r.id)
	}
	for id := range r.children {
		s.images[id].parent = ""
	}
}

// all returns every image, in order of id.
func (s *Service) all() []*record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*record, 0, len(s.ids))
	for _, id := range s.ids {
		list = append(list, s.images[id])
	}
	return list
}

// snapshot returns the references as they are now.
func (s *Service) snapshot() *refSet {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.refs
}

func (s *Service) hasChildren(r *record) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(r.children) > 0
}

func (s *Service) parentOf(r *record) digest.Digest {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return r.parent
}

// releaseLayers gives back references that an operation took. The layers are of no use to it any more, so a failure
// is only logged: the layer store sweeps what nobody holds.
func (s *Service) releaseLayers(ctx context.Context, chains []digest.Digest) {
	for _, chain := range slices.Backward(chains) {
		if err := s.layers.Release(context.WithoutCancel(ctx), chain); err != nil {
			s.log.Warn("release layer", "layer", chain, "error", err)
		}
	}
}
