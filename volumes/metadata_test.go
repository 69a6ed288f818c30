package volumes_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/hostile"
	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/volumes"
)

// However little of the database is left, the volumes are there with the labels they had at the last start.
func TestOpenOnATruncatedDatabase(t *testing.T) {
	for _, left := range []int64{0, 1, 80, 4096, 8192, 12288, 16384} {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			h := newHost(t)
			h.open()
			for i := range 40 {
				h.create(volumes.CreateRequest{Name: fmt.Sprint("vol", i), Labels: map[string]string{"n": fmt.Sprint(i)}})
			}
			h.open() // keeps a copy
			h.close()
			path := filepath.Join(h.dir(), "metadata.db")
			if st, err := os.Stat(path); err != nil || st.Size() <= left {
				t.Fatalf("%+v, %v", st, err)
			}
			if err := os.Truncate(path, left); err != nil {
				t.Fatal(err)
			}
			h.open()
			for i := range 40 {
				v, err := h.store.Get(t.Context(), fmt.Sprint("vol", i), volumes.GetRequest{})
				if err != nil || v.Labels["n"] != fmt.Sprint(i) {
					t.Errorf("%+v, %v", v, err)
				}
			}
			p := h.store.Problems()
			if len(p) != 1 || !strings.Contains(p[0].Text, "was damaged") || !strings.Contains(p[0].Text, "the copy of the last start took its place") {
				t.Errorf("%+v", p)
			}
			h.checkWhole()
		})
	}
}

func TestOpenWhileAnotherProcessHoldsTheDatabase(t *testing.T) {
	h := newHost(t)
	h.open()
	h.create(volumes.CreateRequest{Name: "vol", Labels: map[string]string{"a": "b"}})
	h.close()
	path := filepath.Join(h.dir(), "metadata.db")
	holder := exec.Command("flock", "--no-fork", path, "sh", "-c", "echo held; cat")
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err == nil {
		_, err = io.ReadFull(stdout, make([]byte, len("held\n")))
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = volumes.Open(t.Context(), h.options())
	want := fmt.Sprintf("(%s): timeout: it is held by process %d (sh); stop that process or use another data root", path, holder.Process.Pid)
	if !strings.Contains(text(err), want) {
		t.Errorf("%v, want %s", err, want)
	}
	if err := errors.Join(stdin.Close(), holder.Wait()); err != nil {
		t.Fatal(err)
	}
	h.open()
	if v, err := h.store.Get(t.Context(), "vol", volumes.GetRequest{}); err != nil || v.Labels["a"] != "b" {
		t.Errorf("%+v, %v", v, err)
	}
}

// On a full disk what is acknowledged is kept, what is not is refused with the reason, and the store opens. With space
// again everything goes on.
func TestFullDisk(t *testing.T) {
	h := newHost(t)
	h.fake, h.root = nil, scratch.Dir(t)
	image := filepath.Join(t.TempDir(), "image")
	scratch.Run(t, "truncate", "-s", "16M", image)
	scratch.Run(t, "mkfs.ext4", "-q", "-F", "-m", "0", image)
	scratch.Run(t, "mount", "-o", "loop", image, h.root)
	h.open()
	acknowledged := []string{"first"}
	h.create(volumes.CreateRequest{Name: "first", Labels: map[string]string{"n": "first"}})
	ballast := hostile.FillDisk(t, h.root)
	giveBack(t, ballast, 64<<10) // room for some more
	refused := 0
	create := func() {
		for refused = 0; refused < 3; {
			name := fmt.Sprint("vol", len(acknowledged))
			_, err := h.store.Create(t.Context(), volumes.CreateRequest{Name: name, Labels: map[string]string{"n": name}})
			switch {
			case err == nil:
				acknowledged = append(acknowledged, name)
			case errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "metadata.db cannot be written"):
				refused++
			default:
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	check := func() {
		t.Helper()
		slices.Sort(acknowledged)
		if got := h.names(nil); !slices.Equal(got, acknowledged) {
			t.Errorf("there are %q, acknowledged were %q", got, acknowledged)
		}
		for _, name := range acknowledged {
			if v, err := h.store.Get(t.Context(), name, volumes.GetRequest{}); err != nil || v.Labels["n"] != name {
				t.Errorf("%+v, %v", v, err)
			}
		}
	}
	create()
	check()
	if len(acknowledged) == 1 {
		t.Error("nothing was acknowledged on the nearly full disk")
	}
	_ = h.store.Close() // it may not bring all into the database
	h.store = nil
	h.open()
	check()
	create()
	check()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	acknowledged = append(acknowledged, "last")
	h.create(volumes.CreateRequest{Name: "last", Labels: map[string]string{"n": "last"}})
	check()
	h.open()
	check()
	if err := os.Remove(filepath.Join(h.dir(), "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	h.checkWhole()
	t.Logf("%d were acknowledged", len(acknowledged))
}

// giveBack cuts the end off a file.
func giveBack(t *testing.T, path string, bytes int64) {
	t.Helper()
	st, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, st.Size()-bytes)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Two clients create and remove one volume again and again. Each sees it with what it wrote there, or gone; none sees
// half of it. STATED_SOAK=long makes ten thousand rounds.
func TestOneNameFromTwoClients(t *testing.T) {
	rounds := 300
	if os.Getenv("STATED_SOAK") == "long" {
		rounds = 10_000
	}
	h := newHost(t)
	h.fake = nil
	h.open()
	var wg sync.WaitGroup
	removed := make([]int, 2)
	for client := range removed {
		wg.Go(func() {
			for i := range rounds {
				v, err := h.store.Create(t.Context(), volumes.CreateRequest{Name: "contested", Labels: map[string]string{"by": fmt.Sprint(client)}, Options: crashOptions})
				if err != nil {
					t.Errorf("client %d, round %d: %v", client, i, err)
					return
				}
				if v.Labels["by"] == "" || v.Options["type"] != "tmpfs" {
					t.Errorf("client %d, round %d got %+v", client, i, v)
				}
				err = h.store.Remove(t.Context(), "contested", volumes.RemoveRequest{})
				if err == nil {
					removed[client]++
				} else if !errdefs.IsNotFound(err) {
					t.Errorf("client %d, round %d: %v", client, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if len(h.names(nil)) != 0 {
		t.Errorf("left over: %q", h.names(nil))
	}
	h.checkWhole()
	t.Logf("removals: %v of %d", removed, rounds)
}
