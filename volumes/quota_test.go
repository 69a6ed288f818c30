package volumes_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/volumes"
)

var sizeOption = map[string]string{"size": "1m"}

// onQuotaDisks runs a test on a data root of each file system that can limit volumes.
func onQuotaDisks(t *testing.T, test func(t *testing.T, h *host)) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			h := newHost(t)
			h.fake, h.root = nil, scratch.QuotaDisk(t, kind)
			t.Cleanup(func() { // before the disk goes
				if h.store != nil {
					_ = h.store.Close()
				}
			})
			test(t, h)
		})
	}
}

// wantLimited checks that a volume holds less than 2 MiB.
func (h *host) wantLimited(name string) {
	h.t.Helper()
	path, err := h.store.Mount(h.t.Context(), name, "m")
	if err != nil {
		h.t.Fatal(err)
	}
	err = scratch.Unprivileged(h.t.(*testing.T), func() error {
		f, err := os.Create(filepath.Join(path, "fill"))
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, 2<<20))
		return errors.Join(err, f.Sync(), f.Close())
	})
	if !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.ENOSPC) {
		h.t.Errorf("%s takes 2 MiB: %v", name, err)
	}
	if err := h.store.Unmount(h.t.Context(), name, "m"); err != nil {
		h.t.Error(err)
	}
}

// removeLimited removes the only volume with a limit, and sees that the first project is free then.
func (h *host) removeLimited(name string) {
	h.t.Helper()
	if err := h.store.Remove(h.t.Context(), name, volumes.RemoveRequest{}); err != nil {
		h.t.Error(err)
	}
	scratch.Settle(h.t.(*testing.T), h.root)
	h.open() // projects are handed out from the first again
	next := h.create(volumes.CreateRequest{Name: "next", Options: sizeOption})
	if got := strings.Fields(scratch.Run(h.t.(*testing.T), "lsattr", "-pd", next.Mountpoint))[0]; got != "1" {
		h.t.Errorf("the next volume has project %s", got)
	}
	if err := h.store.Remove(h.t.Context(), "next", volumes.RemoveRequest{}); err != nil {
		h.t.Error(err)
	}
	h.checkWhole()
}

func TestQuotaCrashInCreate(t *testing.T) {
	onQuotaDisks(t, func(t *testing.T, h *host) {
		for _, point := range []string{
			"volumes.local.limited", "volumes.create.staged", "volumes.create.recorded", "volumes.create.published",
		} {
			t.Run(point, func(t *testing.T) {
				h.t = t
				h.open()
				h.close()
				crashAt(t, h.root, "create limited", point)
				h.open()
				listed := h.names(nil)
				recorded := point == "volumes.create.recorded" || point == "volumes.create.published"
				if slices.Contains(listed, "victim") != recorded {
					t.Errorf("%q", listed)
				}
				h.create(volumes.CreateRequest{Name: "victim", Options: sizeOption})
				h.wantLimited("victim")
				h.removeLimited("victim")
			})
		}
	})
}

func TestQuotaCrashInRemove(t *testing.T) {
	onQuotaDisks(t, func(t *testing.T, h *host) {
		for _, point := range []string{
			"volumes.remove.prepared", "volumes.remove.unrecorded", "volumes.local.unlimited", "volumes.remove.deleted",
		} {
			t.Run(point, func(t *testing.T) {
				h.t = t
				h.open()
				h.create(volumes.CreateRequest{Name: "victim", Options: sizeOption})
				h.wantLimited("victim")
				h.close()
				crashAt(t, h.root, "remove", point)
				h.open()
				if left := slices.Contains(h.names(nil), "victim"); left != (point == "volumes.remove.prepared") {
					t.Errorf("listed: %v", left)
				}
				h.create(volumes.CreateRequest{Name: "victim", Options: sizeOption})
				h.wantLimited("victim")
				h.removeLimited("victim")
			})
		}
	})
}

// Copy-up prepares its copy where it can be moved into the volume, whose project nothing from outside can enter.
func TestQuotaCopyUp(t *testing.T) {
	onQuotaDisks(t, func(t *testing.T, h *host) {
		h.open()
		image := filepath.Join(h.root, "image")
		makeImage(t, image)
		v := h.create(volumes.CreateRequest{Name: "vol", Options: sizeOption})
		if err := h.store.CopyUp(t.Context(), "vol", image, nil); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(describeSettled(t, image), describeSettled(t, v.Mountpoint)); diff != "" {
			t.Error(diff)
		}
		h.wantLimited("vol")
	})
}
