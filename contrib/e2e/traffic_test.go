package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/scratch"
)

// TestTraffic sends packets between containers, to published ports, and where none may pass.
func TestTraffic(t *testing.T) {
	t.Parallel()
	h := startedHost(t)
	port := 21000 + 10*h.Number
	h.Docker("network", "create", "one")
	h.Docker("network", "create", "two")
	h.Docker("network", "create", "--internal", "inner")
	h.Docker("network", "create", "--opt", "com.docker.network.bridge.enable_icc=false", "mute")
	web := func(args ...string) {
		h.Docker(append(append([]string{"run", "-d"}, args...), "busybox", "httpd", "-f", "-h", "/etc")...)
	}
	web("--name", "web", "--network", "one", "--network-alias", "alias", "--mac-address", "02:42:0a:01:02:03",
		"-p", fmt.Sprintf("%d:80", port), "-p", fmt.Sprintf("%d:81/udp", port), "-p", fmt.Sprintf("127.0.0.1:%d:80", port+1))
	serveEcho(t, h.Docker("inspect", "-f", "{{.State.Pid}}", "web"), ":81")
	web("--name", "other", "--network", "two")
	web("--name", "inside", "--network", "inner")
	web("--name", "quiet", "--network", "mute")
	web("--name", "plain", "-P", "--expose", "80")
	address := func(name string) string {
		return h.Docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)
	}
	reaches := func(want bool, from, host string) {
		t.Helper()
		r := h.run("run", "--rm", "--network", from, "busybox", "sh", "-c", "timeout 2 wget -qO - http://"+host+"/hostname; exit $?")
		if (r.code == 0) != want {
			t.Errorf("from network %s to %s: reached is %v, want %v: %s", from, host, r.code == 0, want, r.err)
		}
	}
	short := h.Docker("inspect", "-f", "{{slice .Id 0 12}}", "web")
	for _, name := range []string{"web", "alias", short} {
		reaches(true, "one", name)
	}
	reaches(true, "bridge", address("plain"))
	reaches(false, "bridge", "plain") // the default bridge serves no names
	reaches(false, "two", "web")
	reaches(false, "two", address("web"))
	reaches(true, "inner", "inside")
	reaches(false, "inner", address("web"))
	reaches(false, "mute", address("quiet"))
	h.want("02:42:0a:01:02:03", "exec", "web", "cat", "/sys/class/net/eth0/address")
	h.want("1", "exec", "web", "sh", "-c", "ip route | grep -c ^default")
	h.want("0", "exec", "inside", "sh", "-c", "ip route | grep -c ^default; true")

	// From the host, on loopback and on the bridge's address; from containers of all networks through the host.
	for _, addr := range []string{fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("%s:%d", h.Gateway(), port), fmt.Sprintf("127.0.0.1:%d", port+1)} {
		if fetch(t, "hostname", addr) == "" {
			t.Errorf("nothing at %s", addr)
		}
	}
	if _, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", h.Gateway(), port+1), time.Second); err == nil {
		t.Error("a port published on loopback answers on another address")
	}
	for _, addr := range []string{"127.0.0.1", h.Gateway()} {
		if got := echo(t, fmt.Sprintf("%s:%d", addr, port)); got != "ping\n" {
			t.Errorf("UDP through %s: %q", addr, got)
		}
	}
	reaches(true, "two", fmt.Sprintf("%s:%d", h.Gateway(), port))
	reaches(true, "one", fmt.Sprintf("%s:%d", h.Gateway(), port))
	published := h.Docker("port", "plain", "80/tcp")
	first, _, _ := strings.Cut(published, "\n")
	_, free, _ := strings.Cut(first, ":")
	if fetch(t, "hostname", "127.0.0.1:"+free) == "" {
		t.Errorf("nothing at the port of -P, %s", published)
	}

	// From another machine, which a network namespace behind a veth stands for.
	ns := fmt.Sprintf("e2e-%d-%d", h.Number, time.Now().UnixNano()%100000)
	peer := fmt.Sprintf("198.51.%d.", 100+h.Number)
	t.Cleanup(func() {
		_ = exec.Command("ip", "netns", "del", ns).Run() // takes the veth with it
	})
	for _, args := range [][]string{
		{"netns", "add", ns},
		{"link", "add", fmt.Sprintf("far%d", h.Number), "type", "veth", "peer", "name", "near", "netns", ns},
		{"addr", "add", peer + "1/24", "dev", fmt.Sprintf("far%d", h.Number)},
		{"link", "set", fmt.Sprintf("far%d", h.Number), "up"},
		{"-n", ns, "addr", "add", peer + "2/24", "dev", "near"},
		{"-n", ns, "link", "set", "near", "up"},
		{"-n", ns, "route", "add", "default", "via", peer + "1"},
	} {
		scratch.Run(t, "ip", args...)
	}
	far := func(want bool, url string) {
		t.Helper()
		err := exec.Command("ip", "netns", "exec", ns, "curl", "-s", "-m", "2", "-o", "/dev/null", url).Run()
		if (err == nil) != want {
			t.Errorf("from another machine to %s: %v", url, err)
		}
	}
	far(true, fmt.Sprintf("http://%s1:%d/hostname", peer, port))
	far(false, "http://"+address("web")+"/hostname")
	far(false, "http://"+address("other")+"/hostname")

	h.Docker("network", "connect", "two", "web")
	reaches(true, "two", "web")
	h.Docker("network", "disconnect", "two", "web")
	reaches(false, "two", "web")
	h.comesBack()
	h.Docker("rm", "-f", "web")
	far(false, fmt.Sprintf("http://%s1:%d/hostname", peer, port))
}

// serveEcho answers datagrams in the network namespace of a process until the test ends: busybox has no program for it.
func serveEcho(t *testing.T, pid, addr string) {
	t.Helper()
	var conn net.PacketConn
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread is changed, and ends with the goroutine
		var f *os.File
		if f, err = os.Open("/proc/" + pid + "/ns/net"); err != nil {
			return
		}
		defer f.Close()
		if err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err == nil {
			conn, err = net.ListenPacket("udp4", addr)
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	var answers sync.WaitGroup
	answers.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return // closed below
			}
			_, _ = conn.WriteTo(buf[:n], from) // the client notices
		}
	})
	t.Cleanup(func() {
		_ = conn.Close() // ends the answers
		answers.Wait()
	})
}

// echo sends a datagram and returns the answer.
func echo(t *testing.T, addr string) string {
	t.Helper()
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Error(err)
	}
	if _, err := fmt.Fprintln(conn, "ping"); err != nil {
		t.Error(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Error(err)
	}
	return line
}

// comesBack restarts a container that keeps its addresses but not its MAC: one that has talked to it before reaches
// it at once.
func (h host) comesBack() {
	h.T.Helper()
	v4, v6 := fmt.Sprintf("10.%d.200.", h.Number), fmt.Sprintf("fd00:%x::", h.Number)
	h.Docker("network", "create", "--ipv6", "--subnet", v4+"0/24", "--subnet", v6+"/64", "fixed")
	h.Docker("run", "-d", "--name", "back", "--network", "fixed", "--ip", v4+"77", "--ip6", v6+"77", "busybox", "httpd", "-f", "-h", "/etc")
	h.Docker("run", "-d", "--name", "asks", "--network", "fixed", "busybox", "sleep", "1000")
	mac := func() string { return h.Docker("exec", "back", "cat", "/sys/class/net/eth0/address") }
	for range 2 {
		before := mac()
		for _, addr := range []string{v4 + "77", "[" + v6 + "77]"} {
			h.eventually("httpd listens", func() bool {
				return h.run("exec", "back", "wget", "-qO", "/dev/null", "http://"+addr+"/hostname").code == 0
			})
			if r := h.run("exec", "asks", "timeout", "2", "wget", "-qO", "/dev/null", "http://"+addr+"/hostname"); r.code != 0 {
				h.T.Errorf("%s is not reached: %s", addr, r.err)
			}
		}
		h.Docker("restart", "-t", "0", "back")
		if mac() == before {
			h.T.Error("the MAC stays: nothing is tried")
		}
	}
	h.Docker("rm", "-f", "back", "asks")
	h.Docker("network", "rm", "fixed")
}
