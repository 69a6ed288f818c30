package containers_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	api "stated.dev/stated/api/router/containers"
)

// remap starts the daemon anew, with remapped users.
func (b *bench) remap() {
	b.Helper()
	b.end()
	b.ids = user.IdentityMapping{UIDMaps: []user.IDMap{{ParentID: 100000, Count: 65536}}, GIDMaps: []user.IDMap{{ParentID: 200000, Count: 65536}}}
	b.begin()
}

func (b *bench) stat(id, name string) (st unix.Stat_t) {
	b.Helper()
	b.ok(unix.Lstat(filepath.Join(b.root, "containers", id, name), &st))
	return st
}

// The networks are attached to the namespace that the runtime made, while the container's files are mounted already.
func TestRemappedStart(t *testing.T) {
	bubble(t, func(b *bench) {
		b.remap()
		id := b.create("one", nil, "wait")
		mounted := map[string]uint64{}
		b.host.lie("Attach", func() error {
			for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
				mounted[name] = b.stat(id, name).Ino
			}
			return nil
		})
		b.start(id)
		if got, want := b.host.attached.NetNS, fmt.Sprintf("/proc/%d/ns/net", b.state(id).State.Pid); got != want {
			t.Errorf("networks were attached to %q, want %q", got, want)
		}
		for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
			st := b.stat(id, name)
			if st.Ino != mounted[name] || st.Uid != 100000 || st.Gid != 200000 || st.Size == 0 {
				t.Errorf("%s is file %d of %d:%d with %d bytes; file %d is mounted", name, st.Ino, st.Uid, st.Gid, st.Size, mounted[name])
			}
		}
		if st := b.stat(id, ""); st.Uid != 0 || st.Gid != 200000 || st.Mode&0o7777 != 0o710 {
			t.Errorf("the container's directory is %d:%d %o", st.Uid, st.Gid, st.Mode)
		}

		b.start(b.create("host", &container.HostConfig{UsernsMode: "host"}, "wait"))
		if got := b.host.attached.NetNS; got != "" {
			t.Errorf("the networks of a container with the host's users were attached to %q", got)
		}
	})
}

// A created task is undone when its networks cannot be had.
func TestRemappedStartFails(t *testing.T) {
	bubble(t, func(b *bench) {
		b.remap()
		id := b.create("one", nil, "wait")
		b.host.lie("Attach", func() error { return errors.New("no network today") })
		if err := b.Start(b.Context(), id, api.StartRequest{}); err == nil {
			t.Fatal("it started")
		}
		if list, err := b.rt.List(b.Context()); err != nil || len(list) > 0 {
			t.Errorf("tasks %v, %v", list, err)
		}
		b.nothingHeld()
		// A resolv.conf that was lost is no edit of the user's.
		b.ok(os.Remove(filepath.Join(b.root, "containers", id, "resolv.conf")))
		b.ok(os.WriteFile(filepath.Join(b.root, "containers", id, "resolv.conf.hash"), []byte("sha256:old"), 0o600))
		b.start(id)
		if st := b.stat(id, "resolv.conf"); st.Size == 0 {
			t.Error("resolv.conf is empty")
		}
	})
}
