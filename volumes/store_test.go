package volumes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/events"
	"go.etcd.io/bbolt"

	"stated.dev/stated/internal/filters"
	"stated.dev/stated/internal/wal"
	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/local"
	"stated.dev/stated/volumes/volumetest"
)

// host is a data root, and what a daemon on it is made of.
type host struct {
	t      testing.TB
	root   string
	fake   *volumetest.Fake
	events recorder
	refs   func(context.Context) map[string][]string
	now    func() time.Time
	adjust func(*volumes.Options)
	store  *volumes.Store
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{t: t, root: t.TempDir(), fake: &volumetest.Fake{DriverName: "fake", Scope: "global"}}
	t.Cleanup(func() {
		if h.store != nil {
			_ = h.store.Close()
		}
	})
	return h
}

func (h *host) dir() string { return filepath.Join(h.root, "volumes") }

func (h *host) options() volumes.Options {
	opts := volumes.Options{
		Dir:        h.dir(),
		Drivers:    map[string]volumes.Driver{"local": local.New(local.Options{Dir: h.dir()})},
		Events:     &h.events,
		References: h.refs,
		Now:        h.now,
	}
	if h.fake != nil {
		opts.Drivers["fake"] = h.fake
	}
	if h.adjust != nil {
		h.adjust(&opts)
	}
	return opts
}

// open opens the store, again if need be.
func (h *host) open() *volumes.Store {
	h.t.Helper()
	if h.store != nil {
		if err := h.store.Close(); err != nil {
			h.t.Fatal(err)
		}
	}
	s, err := volumes.Open(h.t.Context(), h.options())
	if err != nil {
		h.t.Fatal(err)
	}
	h.store = s
	return s
}

func (h *host) create(req volumes.CreateRequest) volumes.Volume {
	h.t.Helper()
	v, err := h.store.Create(h.t.Context(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

// names returns what the store lists.
func (h *host) names(f filters.Args) []string {
	h.t.Helper()
	list, _, err := h.store.List(h.t.Context(), f)
	if err != nil {
		h.t.Fatal(err)
	}
	names := []string{}
	for _, v := range list {
		names = append(names, v.Name)
	}
	return names
}

// records closes the store and returns the buckets of its database.
func (h *host) records() map[string]map[string]string {
	h.t.Helper()
	if err := h.store.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.store = nil
	db, err := bbolt.Open(filepath.Join(h.dir(), "metadata.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		h.t.Fatal(err)
	}
	defer db.Close()
	buckets := map[string]map[string]string{}
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			buckets[string(name)] = map[string]string{}
			return b.ForEach(func(k, v []byte) error {
				buckets[string(name)][string(k)] = string(v)
				return nil
			})
		})
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return buckets
}

// write puts records into the database of a data root that no store has open.
func (h *host) write(records map[string]string) {
	h.t.Helper()
	if err := os.MkdirAll(h.dir(), 0o701); err != nil {
		h.t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(h.dir(), "metadata.db"), 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true})
	if err != nil {
		h.t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("volumes"))
		for name, value := range records {
			err = errors.Join(err, b.Put([]byte(name), []byte(value)))
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) mkdir(names ...string) {
	h.t.Helper()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(h.dir(), name, "_data"), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
}

// recorder keeps events as text.
type recorder struct {
	mu   sync.Mutex
	list []string
}

func (r *recorder) Publish(typ events.Type, action events.Action, id string, attrs map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, fmt.Sprint(typ, " ", action, " ", id, " ", attrs))
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.list
	r.list = nil
	return list
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func wantError(t *testing.T, err error, want string, class func(error) bool) {
	t.Helper()
	if text(err) != want {
		t.Errorf("error\n got %q\nwant %q", text(err), want)
	}
	if class != nil && !class(err) {
		t.Errorf("%q is of the wrong class", text(err))
	}
}

func TestRecordsAsDockerd(t *testing.T) {
	h := newHost(t)
	h.open()
	h.create(volumes.CreateRequest{Name: "bare"})
	h.create(volumes.CreateRequest{Name: "full", Driver: "local", Labels: map[string]string{"b": "2", "a": "<1>"},
		Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}})
	h.create(volumes.CreateRequest{Name: "empty", Labels: map[string]string{}})
	h.create(volumes.CreateRequest{Name: "gone"})
	if err := h.store.Remove(t.Context(), "gone", volumes.RemoveRequest{}); err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]string{"volumes": {
		"bare":  `{"Name":"bare","Driver":"local","Labels":null,"Options":null}`,
		"full":  `{"Name":"full","Driver":"local","Labels":{"a":"\u003c1\u003e","b":"2"},"Options":{"device":"tmpfs","type":"tmpfs"}}`,
		"empty": `{"Name":"empty","Driver":"local","Labels":{},"Options":null}`,
	}}
	if diff := cmp.Diff(want, h.records()); diff != "" {
		t.Error(diff)
	}
	h.open()
	v, err := h.store.Get(t.Context(), "full", volumes.GetRequest{})
	if err != nil || v.Labels["a"] != "<1>" || v.Options["type"] != "tmpfs" || v.CreatedAt.IsZero() || v.Scope != "local" {
		t.Errorf("after a restart: %+v, %v", v, err)
	}
	bare, err := h.store.Get(t.Context(), "bare", volumes.GetRequest{})
	if err != nil || bare.Labels != nil || bare.Options != nil {
		t.Errorf("null does not stay null: %+v, %v", bare, err)
	}
	if empty, _ := h.store.Get(t.Context(), "empty", volumes.GetRequest{}); empty.Labels == nil {
		t.Error("an empty map becomes null")
	}
	if len(h.store.Problems()) != 0 {
		t.Error(h.store.Problems())
	}
}

func TestCreate(t *testing.T) {
	h := newHost(t)
	h.open()
	ctx := t.Context()
	first := h.create(volumes.CreateRequest{Name: "vol", Labels: map[string]string{"a": "b"}})
	again := h.create(volumes.CreateRequest{Name: "vol", Labels: map[string]string{"c": "d"}, Options: map[string]string{"bad": "ignored"}})
	if diff := cmp.Diff(first, again); diff != "" {
		t.Error("created twice:", diff)
	}
	if first.Mountpoint != filepath.Join(h.dir(), "vol", "_data") {
		t.Error(first.Mountpoint)
	}
	anonymous := h.create(volumes.CreateRequest{Ref: "c1"})
	if len(anonymous.Name) != 64 || anonymous.Driver != "local" {
		t.Errorf("%+v", anonymous)
	}
	if value, labelled := anonymous.Labels["com.docker.volume.anonymous"]; value != "" || !labelled {
		t.Errorf("%+v", anonymous.Labels)
	}
	if refs := h.store.Refs(anonymous.Name); !slices.Equal(refs, []string{"c1"}) {
		t.Error(refs)
	}
	if got := h.events.take(); !slices.Equal(got, []string{"volume create vol map[driver:local]", "volume create " + anonymous.Name + " map[driver:local]"}) {
		t.Errorf("%q", got)
	}

	_, err := h.store.Create(ctx, volumes.CreateRequest{Name: "a"})
	wantError(t, err, "create a: volume name is too short, names should be at least two alphanumeric characters", errdefs.IsInvalidArgument)
	_, err = h.store.Create(ctx, volumes.CreateRequest{Name: "opt", Options: map[string]string{"foo": "bar"}})
	wantError(t, err, `create opt: invalid option: "foo"`, errdefs.IsInvalidArgument)
	_, err = h.store.Create(ctx, volumes.CreateRequest{Name: "new", Driver: "nope"})
	wantError(t, err, `create new: error looking up volume plugin nope: plugin "nope" not found`, errdefs.IsNotFound)
	_, err = h.store.Create(ctx, volumes.CreateRequest{Name: "vol", Driver: "nope"})
	wantError(t, err, `create vol: error looking up volume plugin nope: plugin "nope" not found`, errdefs.IsNotFound)
	_, err = h.store.Create(ctx, volumes.CreateRequest{Name: "vol", Driver: "fake"})
	wantError(t, err, "create vol: driver 'local' already has volume 'vol': volume name must be unique", errdefs.IsConflict)
	if got := h.names(nil); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

func TestCreateElsewhere(t *testing.T) {
	h := newHost(t)
	h.open()
	ctx := t.Context()
	v := h.create(volumes.CreateRequest{Name: "far", Driver: "fake", Ref: "c1"})
	if v.Scope != "global" || v.Driver != "fake" {
		t.Errorf("%+v", v)
	}
	h.fake.Drop("far")
	_, err := h.store.Create(ctx, volumes.CreateRequest{Name: "far"})
	wantError(t, err, "create far: found references to volume 'far' in driver 'fake' but the volume was not found in the driver -- "+
		"you may need to remove containers referencing this volume or force remove the volume to re-create it: volume name must be unique", errdefs.IsConflict)
	h.fake.Fail("Get", errors.New("no answer"))
	_, err = h.store.Create(ctx, volumes.CreateRequest{Name: "far"})
	wantError(t, err, "create far: found reference to volume 'far' in driver 'fake', but got an error while checking the driver: "+
		`error while checking if volume "far" exists in driver "fake": no answer: volume name must be unique`, errdefs.IsConflict)
	h.fake.Fail("Get", nil)
	if err := h.store.Release(ctx, "far", "c1"); err != nil {
		t.Fatal(err)
	}
	if v := h.create(volumes.CreateRequest{Name: "far"}); v.Driver != "local" {
		t.Errorf("a vanished volume that nobody holds makes way: %+v", v)
	}
	// A driver that has the name already is asked before the default one makes it.
	h.fake.Add("theirs")
	if v := h.create(volumes.CreateRequest{Name: "theirs"}); v.Driver != "fake" {
		t.Errorf("%+v", v)
	}
	h.fake.Fail("Stage", errors.New("out of space"))
	_, err = h.store.Create(ctx, volumes.CreateRequest{Name: "more", Driver: "fake"})
	wantError(t, err, "create more: out of space", nil)
	h.fake.Fail("Stage", nil)
	h.fake.Fail("Publish", errors.New("changed its mind"))
	_, err = h.store.Create(ctx, volumes.CreateRequest{Name: "more", Driver: "fake"})
	wantError(t, err, "create more: changed its mind", nil)
	if _, recorded := h.records()["volumes"]["more"]; recorded {
		t.Error("a creation that failed stays recorded")
	}
}

func TestGet(t *testing.T) {
	h := newHost(t)
	h.open()
	ctx := t.Context()
	h.create(volumes.CreateRequest{Name: "vol"})
	h.create(volumes.CreateRequest{Name: "far", Driver: "fake", Labels: map[string]string{"a": "b"}})
	_, err := h.store.Get(ctx, "nope", volumes.GetRequest{})
	wantError(t, err, "get nope: no such volume", errdefs.IsNotFound)
	_, err = h.store.Get(ctx, "nope", volumes.GetRequest{Driver: "local"})
	wantError(t, err, "get nope: no such volume", errdefs.IsNotFound)
	_, err = h.store.Get(ctx, "nope", volumes.GetRequest{Driver: "absent"})
	wantError(t, err, `get nope: error while checking if volume "nope" exists in driver "absent": error looking up volume plugin absent: plugin "absent" not found`, errdefs.IsNotFound)
	_, err = h.store.Get(ctx, "vol", volumes.GetRequest{Driver: "fake"})
	wantError(t, err, "get vol: provided volume driver does not match stored driver", errdefs.IsConflict)
	v, err := h.store.Get(ctx, "far", volumes.GetRequest{Driver: "fake", Ref: "c1"})
	if err != nil || v.Status["fake"] != true || !slices.Equal(h.store.Refs("far"), []string{"c1"}) {
		t.Errorf("%+v, %v", v, err)
	}
	h.fake.Drop("far")
	_, err = h.store.Get(ctx, "far", volumes.GetRequest{})
	wantError(t, err, "get far: no such volume", errdefs.IsNotFound)
	if _, recorded := h.records()["volumes"]["far"]; recorded {
		t.Error("a vanished volume stays recorded")
	}
	// It was the driver's error: with the volume, its labels come back.
	h.fake.Add("far")
	h.open()
	v, err = h.store.Get(ctx, "far", volumes.GetRequest{})
	if err != nil || v.Labels["a"] != "b" {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestInspect(t *testing.T) {
	h := newHost(t)
	h.open()
	v := h.create(volumes.CreateRequest{Name: "vol", Labels: map[string]string{"a": "<b>"}})
	want := fmt.Sprintf(`{"CreatedAt":%q,"Driver":"local","Labels":{"a":"<b>"},"Mountpoint":%q,"Name":"vol","Options":null,"Scope":"local"}`+"\n",
		v.CreatedAt.Format(time.RFC3339), v.Mountpoint)
	for range 2 {
		got, err := h.store.Inspect(t.Context(), "vol")
		if err != nil || string(got) != want {
			t.Errorf("%s, %v", got, err)
		}
	}
	h.create(volumes.CreateRequest{Name: "far", Driver: "fake"})
	got, err := h.store.Inspect(t.Context(), "far")
	if err != nil || !strings.Contains(string(got), `"Status":{"fake":true}`) {
		t.Errorf("%s, %v", got, err)
	}
	h.open()
	if got, err := h.store.Inspect(t.Context(), "vol"); err != nil || string(got) != want {
		t.Errorf("after a restart: %s, %v", got, err)
	}
	if err := h.store.Remove(t.Context(), "vol", volumes.RemoveRequest{}); err != nil {
		t.Fatal(err)
	}
	_, err = h.store.Inspect(t.Context(), "vol")
	wantError(t, err, "get vol: no such volume", errdefs.IsNotFound)
}

func TestReferences(t *testing.T) {
	h := newHost(t)
	h.open()
	ctx := t.Context()
	h.create(volumes.CreateRequest{Name: "vol", Ref: "c2"})
	h.events.take()
	for range 2 {
		if err := h.store.AddRef(ctx, "vol", "c1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, force := range []bool{false, true} {
		err := h.store.Remove(ctx, "vol", volumes.RemoveRequest{Force: force})
		wantError(t, err, "remove vol: volume is in use - [c1, c2]", errdefs.IsConflict)
		if !errors.Is(err, volumes.ErrInUse) {
			t.Error("it is not ErrInUse")
		}
	}
	for _, ref := range []string{"c1", "c1", "c2", "c3"} {
		if err := h.store.Release(ctx, "vol", ref); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.store.Release(ctx, "nope", "c1"); err != nil {
		t.Error(err)
	}
	wantError(t, h.store.AddRef(ctx, "nope", "c1"), "get nope: no such volume", errdefs.IsNotFound)
	if err := h.store.Remove(ctx, "vol", volumes.RemoveRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := h.events.take(); !slices.Equal(got, []string{"volume destroy vol map[driver:local]"}) {
		t.Errorf("%q", got)
	}
	wantError(t, h.store.Remove(ctx, "vol", volumes.RemoveRequest{}), "get vol: no such volume", errdefs.IsNotFound)
	if err := h.store.Remove(ctx, "vol", volumes.RemoveRequest{Force: true}); err != nil {
		t.Error("forced removal of an unknown volume:", err)
	}
	if _, err := os.Lstat(filepath.Join(h.dir(), "vol")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the directory is still there")
	}
}

// A directory that appeared while no daemon ran gets a record when somebody creates it.
func TestCreateOfWhatOnlyTheDiskKnows(t *testing.T) {
	h := newHost(t)
	h.mkdir("plain", "named")
	h.open()
	if err := h.store.AddRef(t.Context(), "named", "c1"); err != nil {
		t.Fatal(err)
	}
	h.create(volumes.CreateRequest{Name: "plain", Labels: map[string]string{"a": "b"}})
	h.create(volumes.CreateRequest{Name: "named", Driver: "local", Labels: map[string]string{"a": "b"}, Ref: "c2"})
	if got := h.store.Refs("named"); !slices.Equal(got, []string{"c1", "c2"}) {
		t.Errorf("%q", got)
	}
	if got := h.events.take(); len(got) != 0 {
		t.Errorf("%q", got)
	}
	want := map[string]string{
		"plain": `{"Name":"plain","Driver":"local","Labels":null,"Options":null}`,
		"named": `{"Name":"named","Driver":"local","Labels":{"a":"b"},"Options":null}`,
	}
	if diff := cmp.Diff(want, h.records()["volumes"]); diff != "" {
		t.Error(diff)
	}
}

// The container records may be locked by somebody who waits for the volume.
func TestReferencesAreAskedWithoutALock(t *testing.T) {
	h := newHost(t)
	h.refs = func(ctx context.Context) map[string][]string {
		if err := h.store.AddRef(ctx, "vol", "c1"); err != nil {
			t.Error(err)
		}
		return map[string][]string{"vol": {"c1"}}
	}
	h.open()
	h.create(volumes.CreateRequest{Name: "vol", Ref: "c1"})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	wantError(t, h.store.Remove(ctx, "vol", volumes.RemoveRequest{}), "remove vol: volume is in use - [c1]", errdefs.IsConflict)
}

// Marks of finished operations and logged changes do not pile up in a daemon that never stops.
func TestMarksAreBounded(t *testing.T) {
	fast := newOtherMount(t)
	h := newHost(t)
	h.root = fast
	h.open()
	const waves, clients, each = 4, 64, 20
	for wave := range waves {
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				for j := range each {
					h.create(volumes.CreateRequest{Name: fmt.Sprintf("vol-%d-%d-%d", wave, i, j)})
				}
			})
		}
		wg.Wait()
		if err := h.store.Fold(); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(h.root, ".stated", "volumes", "log")); err != nil || info.Size() > wal.Reserve {
		t.Errorf("the log takes more than was set aside: %+v, %v", info, err)
	}
	data, err := os.ReadFile(filepath.Join(h.dir(), "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(copied, data, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(copied, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		n := tx.Bucket([]byte("stated.marks")).Stats().KeyN
		// Those of one wave, and fewer than are worth a flush.
		if n == 0 || n >= 1024+clients*each {
			t.Errorf("%d marks after %d creations", n, waves*clients*each)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if buckets := h.records(); len(buckets) != 1 || len(buckets["volumes"]) != waves*clients*each {
		t.Errorf("%d buckets, %d volumes after a clean stop", len(buckets), len(buckets["volumes"]))
	}
}

// A container that no record confirms does not hold a volume for ever; one in the making does for a while.
func TestReferencesAreConfirmed(t *testing.T) {
	h := newHost(t)
	clock := time.Now()
	h.now = func() time.Time { return clock }
	truth := map[string][]string{}
	h.refs = func(context.Context) map[string][]string { return truth }
	h.open()
	ctx := t.Context()
	h.create(volumes.CreateRequest{Name: "vol", Ref: "ghost"})
	wantError(t, h.store.Remove(ctx, "vol", volumes.RemoveRequest{}), "remove vol: volume is in use - [ghost]", errdefs.IsConflict)
	clock = clock.Add(2 * time.Minute)
	truth["vol"] = []string{"real"}
	wantError(t, h.store.Remove(ctx, "vol", volumes.RemoveRequest{}), "remove vol: volume is in use - [real]", errdefs.IsConflict)
	truth = map[string][]string{}
	clock = clock.Add(2 * time.Minute)
	if err := h.store.Remove(ctx, "vol", volumes.RemoveRequest{}); err != nil {
		t.Error(err)
	}
}

func TestRemoveElsewhere(t *testing.T) {
	h := newHost(t)
	h.open()
	ctx := t.Context()
	h.create(volumes.CreateRequest{Name: "far", Driver: "fake"})
	h.fake.Fail("Remove", errors.New("busy"))
	wantError(t, h.store.Remove(ctx, "far", volumes.RemoveRequest{}), "remove far: busy", nil)
	if _, err := h.store.Get(ctx, "far", volumes.GetRequest{}); err != nil {
		t.Error("a removal that failed forgot the volume:", err)
	}
	wantError(t, h.store.Remove(ctx, "far", volumes.RemoveRequest{Force: true}), "remove far: busy", nil)
	if _, recorded := h.records()["volumes"]["far"]; recorded {
		t.Error("forced, the record stays")
	}

	// The driver has gone for good.
	h.fake.Fail("Remove", nil)
	h.open()
	h.create(volumes.CreateRequest{Name: "orphan", Driver: "fake", Labels: map[string]string{"a": "b"}})
	h.fake = nil
	h.open()
	list, warnings, err := h.store.List(ctx, nil)
	if err != nil || len(list) != 1 || len(warnings) != 1 || !strings.HasPrefix(warnings[0], "list fake: ") {
		t.Errorf("%+v, %q, %v", list, warnings, err)
	}
	wantError(t, h.store.Remove(ctx, "orphan", volumes.RemoveRequest{}), `get orphan: error while checking if volume "orphan" exists in driver "fake": `+
		`error looking up volume plugin fake: plugin "fake" not found`, errdefs.IsNotFound)
	if err := h.store.Remove(ctx, "orphan", volumes.RemoveRequest{Force: true}); err != nil {
		t.Error(err)
	}
	if got := h.names(nil); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestRemoveFailsHalfWay(t *testing.T) {
	h := newHost(t)
	h.open()
	ctx := t.Context()
	v := h.create(volumes.CreateRequest{Name: "vol", Labels: map[string]string{"a": "b"}, Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}})
	if _, err := h.store.Mount(ctx, "vol", "m1"); err != nil {
		t.Fatal(err)
	}
	defer h.store.Unmount(ctx, "vol", "m1")
	wantError(t, h.store.Remove(ctx, "vol", volumes.RemoveRequest{}), "remove vol: volume has active mounts", nil)
	got, err := h.store.Get(ctx, "vol", volumes.GetRequest{})
	if diff := cmp.Diff(v, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if err := h.store.Unmount(ctx, "vol", "m1"); err != nil {
		t.Fatal(err)
	}
	if err := h.store.Unmount(ctx, "vol", "m1"); err != nil {
		t.Error("unmounted twice:", err)
	}
	if err := h.store.Unmount(ctx, "nope", "m1"); err != nil {
		t.Error("unmount of what is gone:", err)
	}
	if err := h.store.Remove(ctx, "vol", volumes.RemoveRequest{}); err != nil {
		t.Error(err)
	}
	_, err = h.store.Mount(ctx, "vol", "m1")
	wantError(t, err, "get vol: no such volume", errdefs.IsNotFound)
}

func TestList(t *testing.T) {
	h := newHost(t)
	h.mkdir("disk-only")
	h.open()
	h.create(volumes.CreateRequest{Name: "web-data", Labels: map[string]string{"tier": "web", "env": "prod"}})
	h.create(volumes.CreateRequest{Name: "web-logs", Labels: map[string]string{"tier": "web"}, Ref: "c1"})
	h.create(volumes.CreateRequest{Name: "far", Driver: "fake"})
	h.fake.Add("theirs")
	h.fake.Add("web-data") // the name is taken
	for _, tt := range []struct {
		filters string
		want    []string
	}{
		{``, []string{"disk-only", "far", "theirs", "web-data", "web-logs"}},
		{`{"name":["web"]}`, []string{"web-data", "web-logs"}},
		{`{"name":["^web-d", "far"]}`, []string{"far", "web-data"}},
		{`{"name":["web-data"]}`, []string{"web-data"}},
		{`{"name":["("]}`, []string{}},
		{`{"driver":["fake"]}`, []string{"far", "theirs"}},
		{`{"label":["tier"]}`, []string{"web-data", "web-logs"}},
		{`{"label":["tier=web","env=prod"]}`, []string{"web-data"}},
		{`{"label":{"tier=db":true}}`, []string{}},
		{`{"dangling":["true"]}`, []string{"disk-only", "far", "theirs", "web-data"}},
		{`{"dangling":["0"]}`, []string{"web-logs"}},
		{`{"dangling":["1"],"label":["tier"]}`, []string{"web-data"}},
	} {
		f, err := filters.Parse(tt.filters)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, h.names(f)); diff != "" {
			t.Errorf("%s: %s", tt.filters, diff)
		}
	}
	_, _, err := h.store.List(t.Context(), filters.Args{"foo": {"x"}})
	wantError(t, err, "invalid filter 'foo'", errdefs.IsInvalidArgument)
	_, _, err = h.store.List(t.Context(), filters.Args{"dangling": {"x"}})
	wantError(t, err, "invalid filter 'dangling=[x]'", errdefs.IsInvalidArgument)

	h.fake.Fail("List", errors.New("no answer"))
	list, warnings, err := h.store.List(t.Context(), nil)
	if err != nil || len(list) != 4 || !slices.Equal(warnings, []string{"list fake: no answer"}) {
		t.Errorf("%+v, %q, %v", list, warnings, err)
	}
}

func TestPrune(t *testing.T) {
	h := newHost(t)
	h.open()
	ctx := t.Context()
	anonymous := h.create(volumes.CreateRequest{Ref: "c1"})
	h.create(volumes.CreateRequest{Name: "named", Labels: map[string]string{"keep": "yes"}})
	h.create(volumes.CreateRequest{Name: "other"})
	h.create(volumes.CreateRequest{Name: "used", Ref: "c2"})
	h.create(volumes.CreateRequest{Name: "opts", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}})
	h.create(volumes.CreateRequest{Name: "far", Driver: "fake"})
	fresh := h.create(volumes.CreateRequest{})
	h.events.take()
	if err := os.WriteFile(filepath.Join(anonymous.Mountpoint, "file"), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(anonymous.Mountpoint, "file"), filepath.Join(anonymous.Mountpoint, "link")); err != nil {
		t.Fatal(err)
	}
	prune := func(req volumes.PruneRequest) volumes.PruneReport {
		t.Helper()
		report, err := h.store.Prune(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	if r := prune(volumes.PruneRequest{}); len(r.Deleted) != 0 || r.Deleted == nil {
		t.Errorf("%+v", r)
	}
	if err := h.store.Release(ctx, anonymous.Name, "c1"); err != nil {
		t.Fatal(err)
	}
	if r := prune(volumes.PruneRequest{}); !slices.Equal(r.Deleted, []string{anonymous.Name}) || r.Reclaimed != 1000 {
		t.Errorf("%+v, want the one that was used, not the one that is to be (%s)", r, fresh.Name)
	}
	if r := prune(volumes.PruneRequest{All: true, Filters: filters.Args{"label!": {"keep"}, "label": {"nothing"}}}); len(r.Deleted) != 0 {
		t.Errorf("%+v", r)
	}
	if r := prune(volumes.PruneRequest{Filters: filters.Args{"all": {"true"}, "label!": {"keep=yes"}}}); len(r.Deleted) != 2 {
		t.Errorf("%+v, want other and %s", r, fresh.Name)
	}
	if r := prune(volumes.PruneRequest{All: true}); !slices.Equal(r.Deleted, []string{"named"}) {
		t.Errorf("%+v", r)
	}
	if diff := cmp.Diff([]string{"far", "opts", "used"}, h.names(nil)); diff != "" {
		t.Error(diff)
	}
	got := h.events.take()
	want := []string{"volume prune  map[reclaimed:0]", "volume destroy " + anonymous.Name + " map[driver:local]", "volume prune  map[reclaimed:1000]"}
	if !slices.Equal(got[:3], want) {
		t.Errorf("%q", got)
	}
	for filter, want := range map[string]string{
		`{"all":["a","b"]}`: "invalid filter 'all=[a b]': only one value is expected",
		`{"all":["maybe"]}`: `invalid filter 'all': strconv.ParseBool: parsing "maybe": invalid syntax`,
		`{"name":["x"]}`:    "invalid filter 'name'",
	} {
		f, _ := filters.Parse(filter)
		_, err := h.store.Prune(ctx, volumes.PruneRequest{Filters: f})
		wantError(t, err, want, errdefs.IsInvalidArgument)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := h.store.Prune(cancelled, volumes.PruneRequest{}); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestPruneOneAtATime(t *testing.T) {
	h := newHost(t)
	h.open()
	started, release := make(chan struct{}), make(chan struct{})
	h.create(volumes.CreateRequest{Name: "vol"})
	h.refs = func(context.Context) map[string][]string { return nil }
	blocked := make(chan error, 1)
	slow := &blockingContext{Context: t.Context(), started: started, release: release}
	go func() {
		_, err := h.store.Prune(slow, volumes.PruneRequest{All: true})
		blocked <- err
	}()
	<-started
	_, err := h.store.Prune(t.Context(), volumes.PruneRequest{})
	wantError(t, err, "a prune operation is already running", errdefs.IsConflict)
	close(release)
	if err := <-blocked; err != nil {
		t.Error(err)
	}
}

// blockingContext stops whoever asks it for its end, once.
type blockingContext struct {
	context.Context
	once             sync.Once
	started, release chan struct{}
}

func (c *blockingContext) Err() error {
	c.once.Do(func() {
		close(c.started)
		<-c.release
	})
	return c.Context.Err()
}

func TestDiskUsage(t *testing.T) {
	h := newHost(t)
	h.open()
	v := h.create(volumes.CreateRequest{Name: "vol", Ref: "c1"})
	h.create(volumes.CreateRequest{Name: "opts", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}})
	lost := h.create(volumes.CreateRequest{Name: "lost"})
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "file"), make([]byte, 123), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(lost.Mountpoint); err != nil {
		t.Fatal(err)
	}
	usage, err := h.store.DiskUsage(t.Context())
	if err != nil || len(usage) != 2 || usage[0].Size != -1 || usage[1].Size != 123 || usage[1].RefCount != 1 {
		t.Errorf("%+v, %v", usage, err)
	}
	data, _ := json.Marshal(usage[1].API())
	if !strings.Contains(string(data), `"UsageData":{"RefCount":1,"Size":123}`) {
		t.Errorf("%s", data)
	}
}

func TestOpenOnWhatOthersLeft(t *testing.T) {
	h := newHost(t)
	h.write(map[string]string{
		"docker":   `{"Name":"docker","Driver":"local","Labels":{"a":"b"},"Options":null}`,
		"old":      `{"Name":"old","Driver":"","Labels":null,"Options":null}`,
		"oldfar":   `{"Name":"oldfar","Driver":"","Labels":null,"Options":null}`,
		"vanished": `{"Name":"vanished","Driver":"local","Labels":{"x":"y"},"Options":null}`,
		"garbage":  `{"Name":`,
		"empty":    ``,
		"broken":   `{"Name":"broken","Driver":"local","Labels":null,"Options":{"type":"tmpfs","device":"tmpfs"}}`,
	})
	h.mkdir("docker", "old", "disk", "garbage", "broken")
	if err := os.WriteFile(filepath.Join(h.dir(), "broken", "opts.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.fake.Add("oldfar")
	h.open()
	if diff := cmp.Diff([]string{"broken", "disk", "docker", "garbage", "old", "oldfar"}, h.names(nil)); diff != "" {
		t.Error(diff)
	}
	_, err := h.store.Mount(t.Context(), "broken", "m")
	wantError(t, err, "error while unmarshaling volume options for volume: broken: unexpected end of JSON input", nil)
	var troubled []string
	for _, p := range h.store.Problems() {
		troubled = append(troubled, p.Volume)
	}
	if diff := cmp.Diff([]string{"broken", "garbage"}, troubled); diff != "" {
		t.Error(diff)
	}
	if v, err := h.store.Get(t.Context(), "disk", volumes.GetRequest{}); err != nil || v.Labels != nil {
		t.Errorf("%+v, %v", v, err)
	}
	records := h.records()["volumes"]
	if records["old"] != `{"Name":"old","Driver":"local","Labels":null,"Options":null}` ||
		records["oldfar"] != `{"Name":"oldfar","Driver":"fake","Labels":null,"Options":null}` {
		t.Errorf("%q", records)
	}
	if _, ok := records["vanished"]; ok || records["garbage"] != `{"Name":` {
		t.Errorf("%q", records)
	}
	// The vanished one comes back, with its labels.
	h.mkdir("vanished")
	h.open()
	if v, err := h.store.Get(t.Context(), "vanished", volumes.GetRequest{}); err != nil || v.Labels["x"] != "y" {
		t.Errorf("%+v, %v", v, err)
	}
	if records := h.records()["volumes"]; records["vanished"] == "" {
		t.Error("come back, it is not recorded")
	}
}

func TestTombstonesEnd(t *testing.T) {
	h := newHost(t)
	clock := time.Now()
	h.now = func() time.Time { return clock }
	h.write(map[string]string{"vanished": `{"Name":"vanished","Driver":"local","Labels":{"x":"y"},"Options":null}`})
	h.open()
	stone := filepath.Join(h.root, ".stated", "volumes", "tombstones", "vanished.json")
	if _, err := os.Stat(stone); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(25 * time.Hour)
	h.mkdir("vanished")
	h.open()
	if v, err := h.store.Get(t.Context(), "vanished", volumes.GetRequest{}); err != nil || v.Labels != nil {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := os.Stat(stone); !errors.Is(err, os.ErrNotExist) {
		t.Error("the tombstone stays")
	}
}

// A volume may have a name that is too long for a file's, and the disk may be full, when it vanishes.
func TestTombstonesOfLongNames(t *testing.T) {
	h := newHost(t)
	record := func(name string) string {
		return fmt.Sprintf(`{"Name":%q,"Driver":"fake","Labels":{"x":"y"},"Options":null}`, name)
	}
	long, longer := strings.Repeat("long", 60), strings.Repeat("long/", 100)
	h.write(map[string]string{long: record(long), longer: record(longer)})
	h.open()
	if got := h.names(nil); len(got) != 0 || len(h.store.Problems()) != 0 {
		t.Errorf("%q, %+v", got, h.store.Problems())
	}
	for _, name := range []string{long, longer} {
		staged, err := h.fake.Stage(t.Context(), name, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := staged.Publish(t.Context()); err != nil {
			t.Fatal(err)
		}
		if v, err := h.store.Get(t.Context(), name, volumes.GetRequest{}); err != nil || v.Labels["x"] != "y" {
			t.Errorf("%+v, %v", v, err)
		}
	}
}

func TestTombstoneThatCannotBeWritten(t *testing.T) {
	h := newHost(t)
	h.write(map[string]string{
		"vanished": `{"Name":"vanished","Driver":"local","Labels":{"x":"y"},"Options":null}`,
		"there":    `{"Name":"there","Driver":"local","Labels":null,"Options":null}`,
	})
	h.mkdir("there")
	stones := filepath.Join(h.root, ".stated", "volumes", "tombstones")
	if err := os.MkdirAll(filepath.Dir(stones), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stones, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.open()
	if got := h.names(nil); !slices.Equal(got, []string{"there"}) {
		t.Errorf("%q", got)
	}
	if p := h.store.Problems(); len(p) != 1 || p[0].Volume != "vanished" {
		t.Errorf("%+v", p)
	}
	if records := h.records()["volumes"]; records["vanished"] == "" {
		t.Error("what was known of the volume is lost")
	}
}

func TestOpenWithAFailingDriver(t *testing.T) {
	h := newHost(t)
	h.open()
	h.create(volumes.CreateRequest{Name: "far", Driver: "fake", Labels: map[string]string{"a": "b"}})
	h.fake.Fail("List", errors.New("no answer"))
	h.open()
	list, warnings, err := h.store.List(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Labels["a"] != "b" || len(warnings) != 1 {
		t.Errorf("%+v, %q, %v", list, warnings, err)
	}
	if p := h.store.Problems(); len(p) != 1 || p[0].Driver != "fake" {
		t.Errorf("%+v", p)
	}
	h.fake.Fail("List", nil)
	if v, err := h.store.Get(t.Context(), "far", volumes.GetRequest{}); err != nil || v.Labels["a"] != "b" {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestOpenNamesTheHolder(t *testing.T) {
	h := newHost(t)
	h.open()
	_, err := volumes.Open(t.Context(), h.options())
	want := fmt.Sprintf("open volume store %s: error while opening volume store metadata database (%s/metadata.db): timeout: it is held by process %d (",
		h.dir(), h.dir(), os.Getpid())
	if !strings.HasPrefix(text(err), want) {
		t.Errorf("%v", err)
	}
}

func TestOpenOnADamagedDatabase(t *testing.T) {
	h := newHost(t)
	h.mkdir("vol")
	path := filepath.Join(h.dir(), "metadata.db")
	if err := os.WriteFile(path, make([]byte, 32768), 0o600); err != nil {
		t.Fatal(err)
	}
	s := h.open()
	if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0].Text, "was damaged") {
		t.Errorf("%v", p)
	}
	if got := h.names(nil); !slices.Equal(got, []string{"vol"}) {
		t.Errorf("%q", got)
	}
}

func TestConcurrentUse(t *testing.T) {
	h := newHost(t)
	h.open()
	ctx := t.Context()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 30 {
				name := fmt.Sprintf("vol%d", (i+j)%4)
				ref := fmt.Sprint("c", i)
				if _, err := h.store.Create(ctx, volumes.CreateRequest{Name: name, Ref: ref}); err != nil {
					t.Error(err)
				}
				if _, err := h.store.Inspect(ctx, name); err != nil {
					t.Error("held and gone:", err)
				}
				if err := h.store.Release(ctx, name, ref); err != nil {
					t.Error(err)
				}
				err := h.store.Remove(ctx, name, volumes.RemoveRequest{})
				if err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
					t.Error(err)
				}
				if _, _, err := h.store.ListEncoded(ctx, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	listed := h.names(nil)
	records := h.records()
	if len(records["volumes"]) != len(listed) || len(records) != 1 {
		t.Errorf("listed %q, recorded %q", listed, records)
	}
	entries, _ := os.ReadDir(h.dir())
	if len(entries) != len(listed)+1 {
		t.Errorf("listed %q, on disk %v", listed, entries)
	}
}
