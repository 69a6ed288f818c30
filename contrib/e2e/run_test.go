package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRun runs containers in the foreground and looks at what they see and how they end.
func TestRun(t *testing.T) {
	t.Parallel()
	h := startedHost(t)
	caps := boundingSet(t)
	shared := filepath.Join(h.Dir, "made", "by-docker")
	for name, c := range map[string]struct {
		args  string // split at spaces; the shell command after " -- " is one word
		stdin string
		out   string
		err   string // a part of it
		code  int
	}{
		"output":             {args: "busybox echo hello", out: "hello\n"},
		"both streams":       {args: "busybox sh -c -- echo out; echo err >&2", out: "out\n", err: "err\n"},
		"exit code":          {args: "busybox sh -c -- exit 3", code: 3},
		"command missing":    {args: "busybox nothing-there", code: 127, err: `exec: "nothing-there": executable file not found in $PATH`},
		"command is no file": {args: "busybox /etc", code: 126},
		"not executable":     {args: "busybox /etc/passwd", code: 126, err: "permission denied"},
		"bad option":         {args: "--memory 1k busybox true", code: 125, err: "Minimum memory limit allowed is 6MB"},
		"stdin":              {args: "-i busybox cat", stdin: "some\ntext", out: "some\ntext"},
		"stdin unread":       {args: "-i busybox true", stdin: "some\ntext"},
		"no stdin":           {args: "busybox cat", stdin: "not read"},
		"stdin large":        {args: "-i busybox wc -c", stdin: strings.Repeat("0123456789abcdef", 1<<14), out: "262144\n"},
		"entrypoint":         {args: "--entrypoint echo busybox a b", out: "a b\n"},
		"environment":        {args: "-e A=b -e C busybox sh -c -- echo $A$C $PATH $HOSTNAME $HOME", out: "b /bin h1 /root\n", err: ""},
		"working directory":  {args: "-w /new/one busybox pwd", out: "/new/one\n"},
		"user by name":       {args: "-u user busybox id", out: "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra)\n"},
		"user by number":     {args: "-u 1234:99 --group-add 7 busybox sh -c -- id -u; id -g; id -G", out: "1234\n99\n99 7\n"},
		"no such user":       {args: "-u nobody-here busybox id", code: 125, err: "unable to find user nobody-here: no matching entries in passwd file"},
		"hostname":           {args: "--hostname h2 --domainname d busybox sh -c -- hostname; cat /etc/hostname; grep h2 /etc/hosts | cut -f2", out: "h2\nh2\nh2.d h2\n"},
		"add host":           {args: "--add-host a:1.2.3.4 --add-host b:host-gateway busybox sh -c -- grep '[[:space:]][ab]$' /etc/hosts", out: "1.2.3.4\ta\n" + h.Gateway() + "\tb\n"},
		"dns":                {args: "--dns 9.9.9.9 --dns-search s.example --dns-option ndots:3 busybox sh -c -- grep -v ^# /etc/resolv.conf", out: "\nnameserver 9.9.9.9\nsearch s.example\noptions ndots:3\n"},
		"init":               {args: "--init busybox sh -c -- echo $PPID; cut -d: -f1 /proc/1/cmdline | grep -c docker-init", out: "1\n1\n"},
		"privileged":         {args: "--privileged busybox sh -c -- grep CapEff /proc/self/status; ls /dev/loop-control; mount -t tmpfs x /tmp && echo ok", out: "CapEff:\t" + fmt.Sprintf("%016x", caps) + "\n/dev/loop-control\nok\n"},
		"capabilities":       {args: "busybox grep CapEff /proc/self/status", out: "CapEff:\t00000000a80425fb\n"},
		"cap add and drop":   {args: "--cap-drop ALL --cap-add NET_ADMIN busybox grep CapEff /proc/self/status", out: "CapEff:\t0000000000001000\n"},
		"cap add all":        {args: "--cap-add ALL --cap-drop SYS_ADMIN busybox grep CapEff /proc/self/status", out: "CapEff:\t" + fmt.Sprintf("%016x", caps&^(1<<unix.CAP_SYS_ADMIN)) + "\n"},
		"read-only":          {args: "--read-only --tmpfs /run:size=1m,mode=700 busybox sh -c -- echo x > /x; echo y > /run/y; stat -c %a /run; df -k /run | tail -1 | tr -s ' ' | cut -d' ' -f2", out: "700\n1024\n", err: "can't create /x: Read-only file system"},
		"shm size":           {args: "--shm-size 2m busybox sh -c -- df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", out: "2048\n"},
		"private shm":        {args: "--ipc private --shm-size 3m busybox sh -c -- df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", out: "3072\n"},
		"ipc none":           {args: "--ipc none busybox sh -c -- grep -c /dev/shm /proc/mounts", out: "0\n", code: 1},
		"ulimit":             {args: "--ulimit nofile=100:200 busybox sh -c -- ulimit -Sn; ulimit -Hn", out: "100\n200\n"},
		"sysctl":             {args: "--sysctl net.ipv4.ip_forward=0 --sysctl kernel.msgmax=4000 busybox cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax", out: "0\n4000\n"},
		"sysctl of the host": {args: "--sysctl vm.swappiness=1 busybox true", code: 125, err: "sysctl"},
		"seccomp":            {args: "busybox unshare -m true", code: 1, err: "Operation not permitted"},
		"no seccomp":         {args: "--security-opt seccomp=unconfined --cap-add SYS_ADMIN busybox unshare -m echo ok", out: "ok\n"},
		"no new privileges":  {args: "--security-opt no-new-privileges busybox grep NoNewPrivs /proc/self/status", out: "NoNewPrivs:\t1\n"},
		"bad security":       {args: "--security-opt what=ever busybox true", code: 125, err: "invalid --security-opt 2"},
		"pid host":           {args: "--pid host busybox sh -c -- test $$ -gt 20 && echo ok", out: "ok\n"},
		"uts host":           {args: "--uts host busybox sh -c -- test $(hostname) = " + hostname(t) + " && echo ok", out: "ok\n"},
		"network host":       {args: "--network host busybox sh -c -- ip -o link show " + h.Bridge() + " | wc -l", out: "1\n"},
		"network none":       {args: "--network none busybox sh -c -- ip -o link | wc -l; cat /etc/hosts | wc -l", out: "1\n6\n"},
		"device":             {args: "--device /dev/loop-control:/dev/mine:r busybox sh -c -- stat -c %F /dev/mine; echo > /dev/mine", out: "character special file\n", err: "Operation not permitted", code: 1},
		"device missing":     {args: "--device /dev/not-there busybox true", code: 127, err: `error gathering device information while adding custom device "/dev/not-there": no such file or directory`},
		"limits":             {args: "--memory 32m --memory-swap 32m --cpus 0.5 --pids-limit 30 busybox cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/pids/pids.max", out: "33554432\n50000\n30\n"},
		"out of memory":      {args: "--memory 8m --memory-swap 8m busybox sh -c -- tail /dev/zero", code: 137},
		"bind that is made":  {args: "-v " + shared + ":/x busybox sh -c -- echo hi > /x/y; stat -c %a /x", out: "755\n"},
		"bind read-only":     {args: "-v " + shared + ":/x:ro busybox touch /x/y", code: 1, err: "Read-only file system"},
		"mount bind missing": {args: "--mount type=bind,src=/not/there,dst=/x busybox true", code: 125, err: "invalid mount config for type \"bind\": bind source path does not exist: /not/there"},
		"duplicate mount":    {args: "-v aa:/x --mount type=volume,src=bb,dst=/x busybox true", code: 125, err: "Duplicate mount point: /x"},
		"mount tmpfs":        {args: "--mount type=tmpfs,dst=/x,tmpfs-size=65536,tmpfs-mode=0711 busybox sh -c -- stat -c %a /x; df -k /x | tail -1 | tr -s ' ' | cut -d' ' -f2", out: "711\n64\n"},
		"image missing":      {args: "--pull never no-such-image", code: 125, err: "No such image: no-such-image:latest"},
		"network missing":    {args: "--network nope busybox true", code: 125, err: "network nope not found"},
		"log driver missing": {args: "--log-driver nope busybox true", code: 125, err: "logger: no log driver named 'nope' is registered"},
		"log option":         {args: "--log-opt nope=1 busybox true", code: 125, err: "unknown log opt 'nope' for json-file log driver"},
		"runtime missing":    {args: "--runtime nope busybox true", code: 125, err: "unknown or invalid runtime name: nope"},
		"bad name":           {args: "--name @ busybox true", code: 125, err: "Invalid container name (@), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"},
		"cgroup parent":      {args: "--cgroup-parent /e2e-parent busybox sh -c -- grep -c pids:/ /proc/self/cgroup", out: "1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"run", "--rm", "--hostname", "h1"}
			plain, shell, _ := strings.Cut(c.args, " -- ")
			if strings.Contains(plain, "--hostname") || strings.Contains(plain, "host ") {
				args = args[:2]
			}
			args = append(args, strings.Fields(plain)...)
			if shell != "" {
				args = append(args, shell)
			}
			got := runCommand(t, h.Command(args...), c.stdin)
			if got.out != c.out || got.code != c.code || !strings.Contains(got.err, c.err) {
				t.Errorf("docker %q:\n got code %d, %q, %q\nwant code %d, %q, %q", args, got.code, got.out, got.err, c.code, c.out, c.err)
			}
		})
	}
	if data, err := os.ReadFile(filepath.Join(shared, "y")); err != nil || string(data) != "hi\n" {
		t.Errorf("in the bind: %q, %v", data, err)
	}
	h.eventually("all containers run with --rm are gone", func() bool { return h.Docker("ps", "-aq") == "" })
}

// boundingSet is the set of capabilities that a privileged container gets here.
func boundingSet(t *testing.T) uint64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "CapBnd:\t")
	line, _, _ := strings.Cut(rest, "\n")
	set, err := strconv.ParseUint(line, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func hostname(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}
