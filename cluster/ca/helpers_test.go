package ca_test

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"stated.dev/stated/cluster/ca"
	"stated.dev/stated/internal/fault"
)

// epoch is when the tests take place.
var epoch = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

const cluster = "cluster1"

func at(now time.Time) func() time.Time { return func() time.Time { return now } }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// newRoot is one that was made long ago.
func newRoot() *ca.Root { return must(ca.NewRoot(epoch.Add(-1000 * time.Hour))) }

func newState() ca.State { return must(ca.NewState(cluster, newRoot())) }

// node is a host with all that it holds.
type node struct {
	key    *ecdsa.PrivateKey
	issued []byte // certificate and intermediates
}

// sign makes a node of root's.
func sign(root *ca.Root, id ca.Identity, life time.Duration, now time.Time) node {
	key, request := must2(ca.NewRequest())
	return node{key, must(root.Sign(request, id, life, now))}
}

func must2[T, U any](t T, u U, err error) (T, U) {
	if err != nil {
		panic(err)
	}
	return t, u
}

func (n node) chain() []*x509.Certificate { return must(ca.ParseCertificates(n.issued)) }

func (n node) material(trust ca.Trust) ca.Material {
	return must(ca.NewMaterial(n.key, n.issued, trust))
}

func (n node) credentials(trust ca.Trust, now func() time.Time) *ca.Credentials {
	return must(ca.NewCredentials(n.material(trust), now))
}

// bare is the node as a peer that checks nothing.
func (n node) bare() *tls.Config {
	cert := tls.Certificate{PrivateKey: n.key}
	for _, c := range n.chain() {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return bare(&cert)
}

func bare(cert *tls.Certificate) *tls.Config {
	config := &tls.Config{InsecureSkipVerify: true, ClientAuth: tls.RequestClientCert}
	if cert != nil {
		config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return config
}

func trustOf(root *ca.Root) ca.Trust {
	return must(ca.NewTrust(cluster, ca.EncodeCertificates(root.Certificate())))
}

func manager(name string) ca.Identity {
	return ca.Identity{Cluster: cluster, Node: name, Role: ca.Manager}
}
func worker(name string) ca.Identity {
	return ca.Identity{Cluster: cluster, Node: name, Role: ca.Worker}
}

// end is what one end of a connection came to.
type end struct {
	err   error  // the handshake's, or the first read's when the other end refused later
	got   string // bytes of the application that came
	state tls.ConnectionState
}

// connect lets two ends shake hands over the loopback, and each that believes it has send a word to the other.
func connect(t testing.TB, server, client *tls.Config) (s, c end) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			s.err = err
			return
		}
		s = talk(raw, tls.Server(raw, server), "from the server")
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c = talk(raw, tls.Client(raw, client), "from the client")
	<-done
	return s, c
}

func talk(raw net.Conn, conn *tls.Conn, word string) (e end) {
	defer raw.Close()
	if e.err = conn.Handshake(); e.err != nil {
		return e
	}
	e.state = conn.ConnectionState()
	_, _ = io.WriteString(conn, word) // the other end may have refused; reading says so
	_ = conn.CloseWrite()
	got, err := io.ReadAll(conn)
	e.got, e.err = string(got), err
	return e
}

// wantErr checks that err is a kind and says all of the words.
func wantErr(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// The test binary runs itself as a process that is killed: these variables say what it does, and where.
const (
	childEnv  = "STATED_TEST_CHILD"
	childPath = "STATED_TEST_PATH"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		if err := child(what, os.Getenv(childPath)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runChild does what in a process of its own, with a point that is armed, and returns what it printed.
func runChild(t *testing.T, what, path, point string) (string, error) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what, childPath+"="+path, fault.EnvVar+"="+point,
		"GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
