package volumes_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"stated.dev/stated/volumes"
)

// An export shows the volume as it is when its users are held still, whatever was done to it since it was cloned. Of
// two clocks one is the kernel's, by which whatever is new is cloned twice, and one is far ahead, by which only the times
// of change tell.
func TestExportOfWhatChanges(t *testing.T) {
	for _, kind := range []string{"xfs", "btrfs"} {
		for _, ahead := range []time.Duration{0, time.Hour} {
			t.Run(fmt.Sprintf("%s/%s", kind, ahead), func(t *testing.T) {
				root := newFileSystem(t, kind)
				h := newHost(t)
				h.root = root
				h.now = func() time.Time { return time.Now().Add(ahead) }
				var dir string
				var want []string
				h.adjust = func(o *volumes.Options) {
					o.Freeze = func(context.Context, string) (volumes.Frozen, error) {
						nextTick(t, root)
						change(t, dir)
						want = describe(t, dir)
						return volumes.Frozen{Thaw: func() (time.Duration, error) { return 0, nil }}, nil
					}
				}
				h.open()
				dir = h.create(volumes.CreateRequest{Name: "vol"}).Mountpoint
				makeImage(t, dir)
				prepareChange(t, dir)
				data, report := h.export("vol", volumes.ExportRequest{})
				if report.Consistency != volumes.ConsistencySnapshot {
					t.Fatalf("%+v", report)
				}
				again := h.importStream(volumes.ImportRequest{Name: "again"}, data)
				if diff := cmp.Diff(want, describe(t, again.Mountpoint)); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

// nextTick waits until the file system has another time for what changes next than it had for what changed last.
func nextTick(t *testing.T, dir string) {
	t.Helper()
	changed := func() unix.Timespec {
		path := filepath.Join(dir, "tick")
		var st unix.Stat_t
		if err := errors.Join(os.WriteFile(path, nil, 0o600), unix.Lstat(path, &st), os.Remove(path)); err != nil {
			t.Fatal(err)
		}
		return st.Ctim
	}
	for first := changed(); changed() == first; {
	}
}

// prepareChange adds what change needs.
func prepareChange(t *testing.T, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	err := errors.Join(os.MkdirAll(in("gone/below"), 0o755), os.MkdirAll(in("renamed/below"), 0o755), os.MkdirAll(in("quiet/below"), 0o755),
		os.Mkdir(in("tofile"), 0o755), os.Mkdir(in("tolink"), 0o755), os.Mkdir(in("attrs"), 0o755))
	for _, name := range []string{"same", "samesize", "longer", "shorter", "mode", "owner", "xattr", "tolinked", "todir", "replaced",
		"gone/file", "gone/below/file", "renamed/below/file", "quiet/below/file", "tofile/file", "tolink/file", "moved", "one", "three", "apart"} {
		err = errors.Join(err, os.WriteFile(in(name), []byte("before"), 0o644))
	}
	for i := range 300 { // more than one worker takes
		err = errors.Join(err, os.WriteFile(in(fmt.Sprintf("quiet/%03d", i)), []byte("before"), 0o644))
	}
	err = errors.Join(err, os.Link(in("one"), in("quiet/two")), os.Link(in("three"), in("gone/four")), os.Link(in("three"), in("five")),
		os.Link(in("apart"), in("quiet/apart")), unix.Setxattr(in("xattr"), "user.test", []byte("before"), 0),
		unix.Setxattr(in("attrs"), "user.test", []byte("before"), 0), os.Symlink("before", in("symlink")))
	if err != nil {
		t.Fatal(err)
	}
}

// change makes every kind of change.
func change(t *testing.T, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	var st unix.Stat_t
	write := func(name, text string) error {
		f, err := os.OpenFile(in(name), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		_, err = f.WriteString(text)
		return errors.Join(err, f.Close())
	}
	err := errors.Join(
		// Contents of the same length, with the time of modification set back.
		unix.Lstat(in("samesize"), &st), write("samesize", "after!"),
		os.Chtimes(in("samesize"), time.Time{}, time.Unix(st.Mtim.Unix())),
		write("longer", "much longer than before"), os.Truncate(in("shorter"), 2), write("quiet/007", "after!"),
		os.Chmod(in("mode"), 0o4711), os.Chown(in("owner"), 7, 8),
		unix.Removexattr(in("xattr"), "user.test"), unix.Removexattr(in("attrs"), "user.test"),
		unix.Setxattr(in("attrs"), "trusted.test", []byte("after"), 0),
		// One kind of file for another.
		os.Remove(in("todir")), os.MkdirAll(in("todir/below"), 0o700), write("todir/below/file", "after"),
		os.RemoveAll(in("tofile")), write("tofile", "after"),
		os.RemoveAll(in("tolink")), os.Link(in("same"), in("tolink")),
		os.Remove(in("symlink")), os.Symlink("after", in("symlink")),
		os.Remove(in("replaced")), os.WriteFile(in("replaced"), []byte("after!"), 0o600),
		os.Remove(in("fifo")), os.WriteFile(in("fifo"), []byte("after"), 0o600),
		// Names.
		os.RemoveAll(in("gone")), os.Rename(in("renamed"), in("elsewhere")), os.Rename(in("moved"), in("quiet/moved")),
		os.MkdirAll(in("new/below"), 0o755), write("new/below/file", "after"),
		// Several names: a further one, one of three gone with its directory, contents of all, and one that parts.
		os.Link(in("one"), in("new/one")), write("one", "after!"),
		os.Remove(in("quiet/apart")), os.WriteFile(in("quiet/apart"), []byte("after!"), 0o600),
		os.Rename(in("sub"), in("sub2")),
	)
	if err != nil {
		t.Fatal(err)
	}
}

const (
	mappedPages = 16
	pageSize    = 4096
)

// mapFile maps a file that a writer writes through.
func mapFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(mappedPages * pageSize); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, mappedPages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// writeMapped counts until it is killed, on one page after the other, and always in the file a before the file b. It
// asks the kernel for nothing.
func writeMapped(dir string) error {
	var maps [2][]byte
	for i, name := range []string{"a", "b"} {
		var err error
		if maps[i], err = mapFile(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	fmt.Println("mapped")
	for n := uint64(1); ; n++ {
		at := n % mappedPages * pageSize
		binary.LittleEndian.PutUint64(maps[0][at:], n)
		binary.LittleEndian.PutUint64(maps[1][at:], n)
	}
}

// Who writes through shared mappings is shown at one moment, too.
func TestExportOfMappedFiles(t *testing.T) {
	for _, kind := range []string{"xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			root := newFileSystem(t, kind)
			h := newHost(t)
			h.root = root
			var writer *exec.Cmd
			h.adjust = func(o *volumes.Options) {
				o.Freeze = func(context.Context, string) (volumes.Frozen, error) {
					if err := writer.Process.Signal(syscall.SIGSTOP); err != nil {
						return volumes.Frozen{}, err
					}
					var status unix.WaitStatus
					if _, err := unix.Wait4(writer.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
						return volumes.Frozen{}, fmt.Errorf("the writer is not still: %v", err)
					}
					return volumes.Frozen{Thaw: func() (time.Duration, error) { return 0, writer.Process.Signal(syscall.SIGCONT) }}, nil
				}
			}
			h.open()
			dir := h.create(volumes.CreateRequest{Name: "vol"}).Mountpoint
			writer = startWriter(t, dir)
			for i := range 5 {
				data, report := h.export("vol", volumes.ExportRequest{})
				if report.Consistency != volumes.ConsistencySnapshot {
					t.Fatalf("%+v", report)
				}
				checkMapped(t, h.importStream(volumes.ImportRequest{Name: fmt.Sprint("copy", i)}, data).Mountpoint)
			}
		})
	}
}

// startWriter runs writeMapped until the test ends.
func startWriter(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"=write mapped", crashRoot+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // and Wait tells of it
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, len("mapped"))); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// checkMapped fails unless the files are as they were at one moment.
func checkMapped(t *testing.T, dir string) {
	t.Helper()
	var last [2]uint64
	for i, name := range []string{"a", "b"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		var pages [mappedPages]uint64
		for at := range pages {
			pages[at] = binary.LittleEndian.Uint64(data[at*pageSize:])
			last[i] = max(last[i], pages[at])
		}
		for at, n := range pages {
			want := last[i] - (last[i]-uint64(at))%mappedPages
			if last[i] > mappedPages && n != want {
				t.Errorf("%s: page %d has %d, and page %d has %d already", name, at, n, last[i]%mappedPages, last[i])
			}
		}
	}
	if last[0] != last[1] && last[0] != last[1]+1 {
		t.Errorf("the files are of different moments: %d and %d", last[0], last[1])
	}
}

// The original is not left while it changes under the eyes of who clones it.
func TestExportIsNotLedAway(t *testing.T) {
	root := newFileSystem(t, "xfs")
	h := newHost(t)
	h.root = root
	h.open()
	dir := h.create(volumes.CreateRequest{Name: "vol"}).Mountpoint
	secret := filepath.Join(root, "secret")
	inside := filepath.Join(dir, "dir")
	if err := errors.Join(os.Mkdir(secret, 0o755), os.WriteFile(filepath.Join(secret, "file"), []byte("classified"), 0o600),
		os.Mkdir(inside, 0o755), os.WriteFile(filepath.Join(inside, "file"), []byte("public"), 0o600), os.Symlink(secret, filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, inside, unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE); err != nil {
				stopped <- err
				return
			}
		}
	}()
	for range 50 {
		data, report := h.export("vol", volumes.ExportRequest{})
		if report.Consistency != volumes.ConsistencySnapshot {
			t.Errorf("%+v", report)
		}
		if bytes.Contains(data, []byte("classified")) {
			t.Fatal("what a link leads to was exported")
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}
