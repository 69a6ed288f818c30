package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/daemon/images"
	"stated.dev/stated/internal/atomicfile"
)

// fakeLayers keeps layers as files in a directory, so that they outlive a process, and counts references in memory.
type fakeLayers struct {
	dir     string
	mu      sync.Mutex
	refs    map[digest.Digest]int
	corrupt bool         // TarStream lies
	ordered bool         // Stage is not implemented
	open    atomic.Int32 // staged layers that were neither committed nor discarded
}

type fakeLayer struct {
	Info images.LayerInfo
}

func newFakeLayers(t testing.TB, dir string) *fakeLayers {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &fakeLayers{dir: dir, refs: map[digest.Digest]int{}}
}

func (f *fakeLayers) path(chain digest.Digest, ext string) string {
	return filepath.Join(f.dir, chain.Encoded()+ext)
}

// fakeStaged is a layer without a place.
type fakeStaged struct {
	data []byte
	size int64
	over *atomic.Int32 // counts those that were not ended
	once sync.Once
}

func (s *fakeStaged) DiffID() digest.Digest { return digest.FromBytes(s.data) }

func (s *fakeStaged) Discard(context.Context) error {
	s.once.Do(func() { s.over.Add(-1) })
	return nil
}

func (f *fakeLayers) Stage(_ context.Context, r io.Reader) (images.StagedLayer, error) {
	if f.ordered {
		return nil, errdefs.ErrNotImplemented
	}
	return f.stage(r)
}

func (f *fakeLayers) stage(r io.Reader) (*fakeStaged, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	st := &fakeStaged{data: data, over: &f.open}
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("apply layer: %w", err)
		}
		st.size += h.Size
	}
	f.open.Add(1)
	return st, nil
}

func (f *fakeLayers) Commit(ctx context.Context, parent digest.Digest, staged ...images.StagedLayer) ([]images.LayerInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var infos []images.LayerInfo
	for _, layer := range staged {
		st := layer.(*fakeStaged)
		info := images.LayerInfo{DiffID: st.DiffID(), ChainID: st.DiffID(), Parent: parent, Size: st.size}
		if parent != "" {
			if _, err := f.info(parent); err != nil {
				return nil, err
			}
			info.ChainID = digest.FromString(parent.String() + " " + info.DiffID.String())
		}
		meta, _ := json.Marshal(fakeLayer{info})
		// By rename: somebody may be reading the same layer.
		for ext, data := range map[string][]byte{".tar": st.data, ".json": meta} {
			if err := atomicfile.WriteNoSync(f.path(info.ChainID, ext), data, 0o644); err != nil {
				return nil, err
			}
		}
		_ = st.Discard(ctx)
		infos, parent = append(infos, info), info.ChainID
	}
	f.refs[parent]++
	return infos, nil
}

func (f *fakeLayers) Register(ctx context.Context, r io.Reader, parent digest.Digest) (images.LayerInfo, error) {
	st, err := f.stage(r)
	if err != nil {
		return images.LayerInfo{}, err
	}
	infos, err := f.Commit(ctx, parent, st)
	if err != nil {
		return images.LayerInfo{}, err
	}
	return infos[0], nil
}

func (f *fakeLayers) Layer(chain digest.Digest) (images.LayerInfo, error) { return f.info(chain) }

func (f *fakeLayers) info(chain digest.Digest) (images.LayerInfo, error) {
	data, err := os.ReadFile(f.path(chain, ".json"))
	if err != nil {
		return images.LayerInfo{}, errdefs.ErrNotFound.WithMessage("layer does not exist")
	}
	var l fakeLayer
	err = json.Unmarshal(data, &l)
	return l.Info, err
}

func (f *fakeLayers) Acquire(chain digest.Digest) (images.LayerInfo, error) {
	info, err := f.info(chain)
	if err != nil {
		return info, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refs[chain]++
	return info, nil
}

func (f *fakeLayers) Release(_ context.Context, chain digest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refs[chain] == 0 {
		return fmt.Errorf("release of %s, which is not held", chain)
	}
	f.refs[chain]--
	f.sweepLocked()
	return nil
}

// sweepLocked deletes the layers that nobody holds and no other layer needs.
func (f *fakeLayers) sweepLocked() {
	for {
		needed := map[digest.Digest]bool{}
		infos := f.allLocked()
		for _, info := range infos {
			needed[info.Parent] = true
		}
		gone := false
		for _, info := range infos {
			if f.refs[info.ChainID] == 0 && !needed[info.ChainID] {
				_ = os.Remove(f.path(info.ChainID, ".json"))
				_ = os.Remove(f.path(info.ChainID, ".tar"))
				gone = true
			}
		}
		if !gone {
			return
		}
	}
}

func (f *fakeLayers) allLocked() []images.LayerInfo {
	files, _ := filepath.Glob(filepath.Join(f.dir, "*.json"))
	var infos []images.LayerInfo
	for _, file := range files {
		hash := filepath.Base(file)
		info, err := f.info(digest.NewDigestFromEncoded(digest.SHA256, hash[:len(hash)-len(".json")]))
		if err == nil {
			infos = append(infos, info)
		}
	}
	return infos
}

func (f *fakeLayers) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.allLocked())
}

func (f *fakeLayers) Chain(chain digest.Digest) ([]images.LayerInfo, error) {
	var infos []images.LayerInfo
	for chain != "" {
		info, err := f.info(chain)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
		chain = info.Parent
	}
	slices.Reverse(infos)
	return infos, nil
}

func (f *fakeLayers) TarStream(_ context.Context, chain digest.Digest) (io.ReadCloser, error) {
	if f.corrupt {
		return io.NopCloser(bytes.NewReader([]byte("rot"))), nil
	}
	return os.Open(f.path(chain, ".tar"))
}

func (f *fakeLayers) LayerMetadata(chain digest.Digest) (map[string]string, error) {
	return map[string]string{"UpperDir": "/x/" + chain.Encoded()}, nil
}

func (f *fakeLayers) DriverName() string { return "fake" }

// fakeContainers says what a test wrote into it.
type fakeContainers map[digest.Digest][]images.ContainerUse

func (f fakeContainers) UsingImage(id digest.Digest) []images.ContainerUse { return f[id] }

type recorder struct {
	mu  sync.Mutex
	all []string
}

func (r *recorder) Publish(_ events.Type, action events.Action, id string, attrs map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, fmt.Sprintf("%s %.19s name=%.19s", action, id, attrs["name"]))
}

// house is a service on a directory, with its neighbours.
type house struct {
	*images.Service
	root       string
	layers     *fakeLayers
	containers fakeContainers
	events     *recorder
}

func open(t testing.TB, root string) *house {
	t.Helper()
	h := &house{
		root:       root,
		layers:     newFakeLayers(t, filepath.Join(root, "layers")),
		containers: fakeContainers{},
		events:     &recorder{},
	}
	s, err := images.Open(t.Context(), h.options())
	if err != nil {
		t.Fatal(err)
	}
	h.Service = s
	return h
}

func (h *house) options() images.Options {
	return images.Options{
		Dir:        filepath.Join(h.root, "image", "fake"),
		TempDir:    filepath.Join(h.root, "tmp"),
		LastDir:    filepath.Join(h.root, ".stated", "last"),
		Layers:     h.layers,
		Containers: h.containers,
		Events:     h.events,
		Logger:     slog.New(slog.DiscardHandler),
		Version:    "28.5.2",
	}
}

// transcript collects a progress stream.
type transcript struct{ lines []jsonstream.Message }

func (tr *transcript) emit(m jsonstream.Message) error {
	tr.lines = append(tr.lines, m)
	return nil
}

func (tr *transcript) text() string {
	var b bytes.Buffer
	for _, l := range tr.lines {
		b.WriteString(l.Stream)
	}
	return b.String()
}
