package ca_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"stated.dev/stated/cluster/ca"
)

// openssl runs the command in dir.
func openssl(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestOpensslVerifies: another implementation builds the same chains, before, during and after a change of the root.
func TestOpensslVerifies(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, text []byte) { check(t, os.WriteFile(filepath.Join(dir, name), text, 0o600)) }
	s := newState()
	old := must(s.Root())
	put("old.pem", old.EncodeCertificates())
	s = must(s.Rotate(newRoot(), epoch))
	next := must(s.Signer())
	put("new.pem", next.EncodeCertificates())
	put("both.pem", must(s.Trust()).Encode())
	before, during := sign(old, manager("m1"), 0, epoch), sign(next, worker("w1"), 0, epoch)
	for name, n := range map[string]node{"before": before, "during": during} {
		put(name+".pem", ca.EncodeCertificates(n.chain()[0]))
		put(name+"-chain.pem", n.issued)
		put(name+".key", must(ca.EncodeKey(n.key)))
	}
	when := fmt.Sprint(epoch.Unix())
	for _, c := range []struct {
		roots, cert, purpose string
		good                 bool
	}{
		{"old.pem", "before", "sslserver", true}, {"old.pem", "before", "sslclient", true},
		{"both.pem", "before", "sslserver", true}, {"both.pem", "during", "sslclient", true},
		{"old.pem", "during", "sslserver", true}, // by the cross-signed root
		{"new.pem", "during", "sslserver", true}, {"new.pem", "before", "sslserver", false},
	} {
		out, err := openssl(t, dir, "verify", "-x509_strict", "-attime", when, "-purpose", c.purpose, "-no-CApath", "-no-CAstore",
			"-CAfile", c.roots, "-untrusted", c.cert+"-chain.pem", c.cert+".pem")
		if (err == nil) != c.good {
			t.Errorf("%s under %s: %v, %s", c.cert, c.roots, err, out)
		}
	}
	out, err := openssl(t, dir, "x509", "-noout", "-subject", "-nameopt", "RFC2253", "-in", "before.pem")
	if want := "subject=CN=m1,OU=swarm-manager,O=cluster1"; err != nil || strings.TrimSpace(out) != want {
		t.Errorf("got %s, %v; want %s", out, err, want)
	}
	if out, err := openssl(t, dir, "pkey", "-check", "-noout", "-in", "before.key"); err != nil {
		t.Errorf("key: %v, %s", err, out)
	}
}

// TestOpensslRoot: an authority made by openssl, with an intermediate and its own forms of files, is one.
func TestOpensslRoot(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "ext"), []byte("basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n"), 0o600))
	for _, line := range []string{
		"ecparam -name prime256v1 -genkey -out top.key", // with the curve's name before the key
		"req -x509 -new -key top.key -subj /CN=top -days 3650 -out top.pem",
		"genrsa -traditional -out mid.key 2048",
		"req -new -key mid.key -subj /CN=mid -out mid.csr",
		"x509 -req -in mid.csr -CA top.pem -CAkey top.key -CAcreateserial -days 3000 -extfile ext -out mid.pem",
	} {
		if out, err := openssl(t, dir, strings.Fields(line)...); err != nil {
			t.Fatalf("%s: %v, %s", line, err, out)
		}
	}
	read := func(name string) []byte { return must(os.ReadFile(filepath.Join(dir, name))) }
	single := must(ca.LoadRoot(read("top.pem"), read("top.key")))
	now := single.Certificate().NotBefore.Add(time.Hour) // when the intermediate is in force too
	_ = must(trustOf(single).Verify(sign(single, worker("n"), 0, now).chain(), ca.Want{}, now))
	root := must(ca.LoadRoot(slices.Concat(read("mid.pem"), read("top.pem")), read("mid.key")))
	_ = must(trustOf(root).Verify(sign(root, worker("n"), 0, now).chain(), ca.Want{}, now))
}

// TestOpensslClient: a peer that is not ours gets in with a certificate, and not a byte without.
func TestOpensslClient(t *testing.T) {
	dir, root := t.TempDir(), newRoot()
	n := sign(root, worker("w1"), 0, epoch)
	check(t, os.WriteFile(filepath.Join(dir, "chain.pem"), n.issued, 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "key.pem"), must(ca.EncodeKey(n.key)), 0o600))
	own := sign(root, manager("m1"), 0, epoch).credentials(trustOf(root), at(epoch))
	const word = "application data"
	for name, args := range map[string][]string{
		"with": {"-cert", "chain.pem", "-key", "key.pem"}, "without": nil,
	} {
		l := must(net.Listen("tcp", "127.0.0.1:0"))
		served := make(chan error, 1)
		go func() {
			raw, err := l.Accept()
			if err != nil {
				served <- err
				return
			}
			defer raw.Close()
			conn := tls.Server(raw, own.Server(ca.Want{}))
			_, err = io.WriteString(conn, word)
			_ = conn.Close()
			served <- err
		}()
		cmd := exec.CommandContext(t.Context(), "openssl", append([]string{"s_client", "-quiet", "-tls1_3", "-connect", l.Addr().String()}, args...)...)
		cmd.Dir = dir
		out, _ := cmd.Output() // its exit code says whether it liked our self-signed root
		err := <-served
		l.Close()
		if good := name == "with"; (err == nil) != good || bytes.Contains(out, []byte(word)) != good {
			t.Errorf("%s a certificate: server %v, client got %q", name, err, out)
		}
	}
}
