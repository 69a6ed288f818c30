package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv"
	"stated.dev/stated/internal/testenv/scratch"
)

// remappedHost returns a host whose containers have other users than it, and the data root of those.
func remappedHost(t *testing.T, flags ...string) (h host, dataRoot string) {
	t.Helper()
	h = host{scratch.New(t, append(flags, "--userns-remap", scratch.RemapUser)...)}
	if err := os.Chmod(h.Dir, 0o711); err != nil { // remapped users pass through to their root file systems
		t.Fatal(err)
	}
	h.Start()
	h.ImportBusybox()
	return h, filepath.Join(h.Roots.Data, remappedDir)
}

var remappedDir = fmt.Sprintf("%d.%d", scratch.RemapUID, scratch.RemapGID)

// owner is who owns a path on the host, and its mode.
func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Error(err)
	}
	return fmt.Sprintf("%d:%d %04o", st.Uid, st.Gid, st.Mode&0o7777)
}

// nothingSince waits until nothing is there that was not there before.
func (h host) nothingSince(before testenv.State) {
	h.T.Helper()
	var leaks []string
	defer func() {
		if h.T.Failed() {
			h.T.Logf("left are %q", leaks)
		}
	}()
	h.eventually("nothing is left", func() bool {
		after, err := testenv.Observe(h.Roots)
		leaks = after.Leaks(before)
		return err == nil && len(leaks) == 0
	})
}

// TestRemappedUsers runs containers as users who are others on the host.
func TestRemappedUsers(t *testing.T) { // not beside other tests, for what is left
	h, root := remappedHost(t)
	containers := fmt.Sprintf("%d:%d", scratch.RemapUID, scratch.RemapGID)
	daemons := fmt.Sprintf("0:%d", scratch.RemapGID)
	if got := h.Docker("info", "-f", "{{.DockerRootDir}} {{.SecurityOptions}}"); !strings.HasPrefix(got, root+" ") || !strings.Contains(got, "name=userns") {
		t.Errorf("info says %s", got)
	}
	h.Docker("run", "--rm", "--userns", "host", "--network", "host", "busybox", "true") // the host's namespace has its name from now on
	before, err := testenv.Observe(h.Roots)
	if err != nil {
		t.Fatal(err)
	}

	h.comesBack()
	bind := filepath.Join(h.Dir, "made", "bind")
	uidMap := fmt.Sprintf("0 %d 65536", scratch.RemapUID)
	all := "0 0 4294967295"
	idMap := "tr -s ' ' < /proc/self/uid_map | cut -c2-"
	for name, c := range map[string]struct {
		args []string
		out  string
		err  string // a part of it; not empty: the container does not run, or not well
	}{
		"map":                {args: []string{"busybox", "sh", "-c", idMap}, out: uidMap},
		"root":               {args: []string{"busybox", "sh", "-c", "id -u; stat -c %u:%g / /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm"}, out: "0\n0:0\n0:0\n0:0\n0:0\n0:0"},
		"another user":       {args: []string{"-u", "1000:7", "busybox", "sh", "-c", "id -u; touch /tmp/x; stat -c %u:%g /tmp/x"}, out: "1000\n1000:7"},
		"output by path":     {args: []string{"busybox", "sh", "-c", "echo hi > /dev/stdout"}, out: "hi"},
		"devices":            {args: []string{"busybox", "sh", "-c", "echo > /dev/null; head -c 3 /dev/zero | wc -c; mknod /tmp/d c 1 3"}, err: "Operation not permitted"},
		"working directory":  {args: []string{"-w", "/made/dir", "busybox", "stat", "-c", "%u:%g", "."}, out: "0:0"},
		"tmpfs":              {args: []string{"--tmpfs", "/t", "busybox", "sh", "-c", "touch /t/x; stat -c %u:%g /t/x"}, out: "0:0"},
		"read-only":          {args: []string{"--read-only", "busybox", "touch", "/x"}, err: "Read-only file system"},
		"kernel's files":     {args: []string{"busybox", "sh", "-c", "echo 1 > /proc/sys/kernel/panic"}, err: "Read-only file system"},
		"masked":             {args: []string{"busybox", "cat", "/proc/keys"}},
		"ping group":         {args: []string{"busybox", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"}, out: "0"},
		"sysctl":             {args: []string{"--sysctl", "net.ipv4.ip_forward=0", "busybox", "cat", "/proc/sys/net/ipv4/ip_forward"}, out: "0"},
		"own network":        {args: []string{"--cap-add", "NET_ADMIN", "busybox", "sh", "-c", "ip link set lo mtu 1000 && ip -o link show lo | grep -c 'mtu 1000'"}, out: "1"},
		"no network":         {args: []string{"--network", "none", "busybox", "sh", "-c", "ip -o link | wc -l; ip -o -4 addr show lo | wc -l"}, out: "1\n1"},
		"host and domain":    {args: []string{"--hostname", "h", "--domainname", "d.example", "busybox", "sh", "-c", "hostname; cat /proc/sys/kernel/domainname"}, out: "h\nd.example"},
		"init":               {args: []string{"--init", "busybox", "echo", "hi"}, out: "hi"},
		"device of the host": {args: []string{"--device", "/dev/loop-control", "busybox", "stat", "-c", "%F", "/dev/loop-control"}, out: "character special file"},
		"new bind":           {args: []string{"-v", bind + ":/b", "busybox", "sh", "-c", "touch /b/x; stat -c %u:%g /b /b/x"}, out: "0:0\n0:0"},
		"new volume":         {args: []string{"-v", "plain:/v", "busybox", "sh", "-c", "touch /v/x; stat -c %u:%g /v /v/x"}, out: "0:0\n0:0"},
		"filled volume":      {args: []string{"-v", "filled:/etc", "busybox", "stat", "-c", "%u:%g", "/etc", "/etc/group"}, out: "0:0\n0:0"},

		"host's users":               {args: []string{"--userns", "host", "busybox", "sh", "-c", idMap + "; stat -c %u:%g / /etc/hosts"}, out: all + "\n" + containers + "\n" + containers},
		"privileged":                 {args: []string{"--privileged", "busybox", "true"}, err: "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode"},
		"privileged, host's users":   {args: []string{"--privileged", "--userns", "host", "busybox", "sh", "-c", idMap}, out: all},
		"host's network":             {args: []string{"--network", "host", "busybox", "true"}, err: "cannot share the host's network namespace when user namespaces are enabled"},
		"host's network and users":   {args: []string{"--network", "host", "--userns", "host", "busybox", "echo", "ok"}, out: "ok"},
		"host's processes":           {args: []string{"--pid", "host", "busybox", "true"}, err: "cannot share the host PID namespace when user namespaces are enabled"},
		"host's processes and users": {args: []string{"--pid", "host", "--userns", "host", "busybox", "echo", "ok"}, out: "ok"},
		"writable cgroups":           {args: []string{"--security-opt", "writable-cgroups=true", "busybox", "true"}, err: "option WritableCgroups conflicts with user namespaces and rootless mode"},
	} {
		t.Run(name, func(t *testing.T) {
			got := h.run(append([]string{"run", "--rm"}, c.args...)...)
			if strings.TrimSpace(got.out) != c.out && c.err == "" || !strings.Contains(got.err, c.err) || (got.code == 0) != (c.err == "") {
				t.Errorf("docker run %q:\n got code %d, %q, %q\nwant %q, %q", c.args, got.code, got.out, got.err, c.out, c.err)
			}
		})
	}
	for path, want := range map[string]string{
		h.Roots.Data: daemons + " 0710", root: daemons + " 0710", filepath.Join(root, "containers"): daemons + " 0710",
		filepath.Join(root, "volumes"): "0:0 0701", filepath.Join(root, "volumes/plain"): "0:0 0701",
		filepath.Join(root, "volumes/plain/_data"): containers + " 0755", filepath.Join(root, "volumes/plain/_data/x"): containers + " 0644",
		filepath.Join(root, "volumes/filled/_data/group"): containers + " 0644",
		filepath.Dir(bind): containers + " 0755", bind: containers + " 0755", filepath.Join(bind, "x"): containers + " 0644",
	} {
		if got := owner(t, path); got != want {
			t.Errorf("%s belongs to %s, want %s", path, got, want)
		}
	}
	h.Docker("volume", "rm", "plain", "filled")
	h.eventually("all containers run with --rm are gone", func() bool { return h.Docker("ps", "-aq") == "" })
	h.nothingSince(before)
}

// TestRemappedLife keeps containers with remapped users over restarts of the daemon.
func TestRemappedLife(t *testing.T) { // as above
	h, root := remappedHost(t)
	before, err := testenv.Observe(h.Roots)
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(20000 + h.Number)
	h.Docker("network", "create", "net")
	server := h.Docker("run", "-d", "--name", "server", "--network", "net", "-p", "127.0.0.1:"+port+":80", "-v", "data:/data", "--ipc", "shareable",
		"--health-cmd", "test -e /bin/busybox", "--health-interval", "200ms", "busybox", "httpd", "-f", "-h", "/bin")
	h.Docker("run", "-d", "-i", "--name", "reader", "--network", "net", "busybox", "cat")
	h.fails("port is already allocated", "run", "--name", "late", "-p", "127.0.0.1:"+port+":80", "busybox", "true")
	h.Docker("rm", "late")

	dir := filepath.Join(root, "containers", server)
	containers, daemons := fmt.Sprintf("%d:%d", scratch.RemapUID, scratch.RemapGID), fmt.Sprintf("0:%d", scratch.RemapGID)
	for path, want := range map[string]string{
		dir: daemons + " 0710", filepath.Join(dir, "mounts"): daemons + " 0710", filepath.Join(dir, "mounts/shm"): containers + " 1777",
		filepath.Join(dir, "hosts"): containers + " 0644", filepath.Join(dir, "hostname"): containers + " 0644", filepath.Join(dir, "resolv.conf"): containers + " 0644",
		filepath.Join(dir, "checkpoints"): "0:0 0700", filepath.Join(dir, "config.v2.json"): "0:0 0600",
	} {
		if got := owner(t, path); got != want {
			t.Errorf("%s belongs to %s, want %s", path, got, want)
		}
	}
	works := func() {
		t.Helper()
		pid := h.Docker("inspect", "-f", "{{.State.Pid}}", "server")
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if want := fmt.Sprintf("Uid:\t%d\t", scratch.RemapUID); err != nil || !strings.Contains(string(status), want) {
			t.Errorf("the server's process is not %q on the host: %v", want, err)
		}
		if body := fetch(t, "busybox", "127.0.0.1:"+port); body == "" {
			t.Error("the published port does not answer")
		}
		h.want("ok", "exec", "reader", "sh", "-c", "wget -qO /dev/null http://server/busybox && echo ok")
		h.want("0:0", "exec", "server", "sh", "-c", "echo x > /data/x; stat -c %u:%g /data/x")
		h.eventually("the server is healthy", func() bool { return h.Docker("inspect", "-f", "{{.State.Health.Status}}", "server") == "healthy" })
		if line := h.attachedLine("reader", "typed\n"); line != "typed\n" {
			t.Errorf("attach shows %q", line)
		}
		for _, mode := range []string{"network", "pid", "ipc"} {
			h.want("ok", "run", "--rm", "--"+mode, "container:server", "busybox", "sh", "-c", "grep -q '^ *0 *500000 ' /proc/self/uid_map && ls /sys/class/net > /dev/null && echo ok")
		}
	}
	works()
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		h.Stop(sig)
		if body := fetch(t, "busybox", "127.0.0.1:"+port); body == "" {
			t.Error("the published port does not answer while no daemon runs")
		}
		h.Start()
		works()
	}
	h.Docker("restart", "-t", "0", "reader")
	works()
	h.Docker("network", "create", "second")
	h.Docker("network", "connect", "second", "server")
	h.want("2", "exec", "server", "sh", "-c", "grep -c $(hostname) /etc/hosts")
	h.Docker("network", "disconnect", "second", "server")

	h.Docker("rm", "-f", "server", "reader")
	h.Docker("network", "rm", "net", "second")
	h.Docker("volume", "rm", "data")
	h.nothingSince(before)
}

// TestRemappedContainerd runs containers with remapped users through an external containerd.
func TestRemappedContainerd(t *testing.T) {
	e := newExternal(t)
	h, _ := remappedHost(t, "--containerd", e.address())
	h.want(fmt.Sprintf("0 %d 65536", scratch.RemapUID), "run", "--rm", "busybox", "sh", "-c", "tr -s ' ' < /proc/self/uid_map | cut -c2-")
	h.want("hi", "run", "--rm", "busybox", "sh", "-c", "echo hi > /dev/stdout")
	h.Docker("run", "-d", "-i", "--name", "web", "-v", "data:/data", "busybox", "cat")
	h.want("0:0", "exec", "web", "sh", "-c", "echo x > /data/x; stat -c %u:%g /data/x")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		h.Stop(sig)
		h.Start()
		h.want("ok", "exec", "web", "sh", "-c", "ping -c 1 -W 1 127.0.0.1 > /dev/null; ls /sys/class/net > /dev/null && echo ok")
		if line := h.attachedLine("web", "typed\n"); line != "typed\n" {
			t.Errorf("attach shows %q", line)
		}
	}
	h.Docker("restart", "-t", "0", "web")
	h.want("x", "exec", "web", "cat", "/data/x")
	h.Docker("rm", "-f", "web")
	if left := e.bundles(); len(left) != 0 {
		t.Errorf("left are %q", left)
	}
}

// TestRemappedAdopt loses the database of the volumes of remapped users, who have a data root of their own.
func TestRemappedAdopt(t *testing.T) {
	h, root := remappedHost(t)
	h.Docker("create", "--name", "web", "-v", "data:/data", "-v", "gone:/gone", "busybox", "true")
	h.Stop(syscall.SIGTERM)
	for _, path := range []string{"volumes/metadata.db", ".stated/volumes", "volumes/gone"} {
		if err := os.RemoveAll(filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
	}
	remap := []string{"volume", "adopt", "--userns-remap", scratch.RemapUser}
	if r := h.stated(remap...); r.code != 1 || !strings.Contains(r.err, "--data-root") {
		t.Errorf("without a data root: %+v", r)
	}
	missing := "directory " + filepath.Join(root, "volumes", "gone", "_data") + " is missing"
	if r := h.stated(append(remap, "--data-root", h.Roots.Data)...); r.code != 2 || !strings.Contains(r.out, "data (local) is recorded now") || !strings.Contains(r.out, missing) {
		t.Errorf("%+v", r)
	}
	h.Start()
	if r := h.stated("volume", "adopt"); r.code != 2 || !strings.Contains(r.out, "data (local) has its record") {
		t.Errorf("%+v", r)
	}
}

// TestRemappedRefusals starts daemons that cannot have the users that they are told to have.
func TestRemappedRefusals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		flags []string
		mode  os.FileMode
		want  string
	}{
		"no such user":  {[]string{"--userns-remap", "nobody-here"}, 0o711, "look up the user nobody-here in /etc/passwd"},
		"no default":    {[]string{"--userns-remap", "default"}, 0o711, "useradd --system --user-group --no-create-home --shell /bin/false dockremap"},
		"unpassable":    {[]string{"--userns-remap", scratch.RemapUser}, 0o700, "keeps out the remapped root 500000:600000: allow it to pass with: chmod o+x "},
		"no such group": {[]string{"--userns-remap", scratch.RemapUser + ":nobody-here"}, 0o711, "look up the group nobody-here in /etc/group"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := scratch.Dir(t)
			if err := os.Chmod(dir, c.mode); err != nil {
				t.Fatal(err)
			}
			l := scratch.Launch{
				Roots:  testenv.Roots{Data: filepath.Join(dir, "data"), Exec: filepath.Join(dir, "exec")},
				Socket: filepath.Join(dir, "s.sock"), Log: filepath.Join(dir, "log"), Flags: c.flags,
			}
			d, err := l.Start()
			if err == nil {
				_ = d.End(syscall.SIGTERM)
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("it says %v, which does not hold %q", err, c.want)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "data", "*", "containers")); slices.Contains(left, "containers") {
				t.Errorf("it left %v", left)
			}
		})
	}
}
