package local_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/volumes/local"
)

// serveNFS lets the kernel export a directory over NFS 4 to this host, until the machine ends. What mountd would answer
// the kernel is written into its caches beforehand.
func serveNFS(t *testing.T, dir string) {
	t.Helper()
	scratch.Run(t, "mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
	t.Cleanup(func() { scratch.Run(t, "umount", "/proc/fs/nfsd") })
	const forever = " 2147483647 "
	for _, line := range [][2]string{
		{"/proc/net/rpc/auth.unix.ip/channel", "nfsd 127.0.0.1" + forever + "here"},
		// Root stays root, any port will do, no subtree check, file system 0: the root of what is exported.
		{"/proc/net/rpc/nfsd.export/channel", "here " + dir + forever + "9218 65534 65534 0"},
		{"/proc/net/rpc/nfsd.fh/channel", `here 1 \x00000000` + forever + dir},
		{"/proc/fs/nfsd/versions", "-3 +4"},
		{"/proc/fs/nfsd/portlist", "tcp 2049"},
		{"/proc/fs/nfsd/threads", "1"},
	} {
		if err := os.WriteFile(line[0], []byte(line[1]+"\n"), 0); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.WriteFile("/proc/fs/nfsd/threads", []byte("0\n"), 0) }) // it goes with the machine
}

func TestNFS(t *testing.T) {
	if os.Getenv("STATED_INSIDE") == "" {
		t.Skip("it needs the kernel's NFS server for itself, which contrib/vmtest has in a virtual machine")
	}
	dir := scratch.Dir(t)
	export := filepath.Join(dir, "export")
	if err := os.Mkdir(export, 0o755); err != nil {
		t.Fatal(err)
	}
	serveNFS(t, export)
	d := local.New(local.Options{Dir: filepath.Join(dir, "volumes"), Resolve: func(_ context.Context, host string) (netip.Addr, error) {
		if host != "nas" {
			t.Errorf("asked for %q", host)
		}
		return netip.MustParseAddr("127.0.0.1"), nil
	}})
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	create(t, d, "vol", map[string]string{"type": "nfs", "device": ":/", "o": "vers=4.1,soft,timeo=100,clientaddr=127.0.0.1,addr=nas"})
	path := mountVolume(t, d, "vol")
	if err := os.Mkdir(filepath.Join(path, "made"), 0o755); err != nil { // a file has to wait until the server's grace is over
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(export, "made")); err != nil {
		t.Error(err)
	}
	if err := d.Unmount(t.Context(), "vol", "a"); err != nil || mounted(t, path) {
		t.Errorf("%v, mounted: %v", err, mounted(t, path))
	}
}
