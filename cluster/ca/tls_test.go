package ca_test

import (
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"stated.dev/stated/cluster/ca"
)

func TestGoodPeers(t *testing.T) {
	root := newRoot()
	trust := trustOf(root)
	m := sign(root, manager("m1"), 0, epoch).credentials(trust, at(epoch))
	w := sign(root, worker("w1"), 0, epoch).credentials(trust, at(epoch))
	s, c := connect(t, m.Server(ca.Want{}), w.Client(ca.Want{Role: ca.Manager, Node: "m1"}))
	if s.err != nil || c.err != nil || s.got != "from the client" || c.got != "from the server" {
		t.Fatalf("server %v %q, client %v %q", s.err, s.got, c.err, c.got)
	}
	if s.state.Version != tls.VersionTLS13 || s.state.DidResume {
		t.Errorf("version %x, resumed %v", s.state.Version, s.state.DidResume)
	}
	if got := must(m.Peer(s.state, ca.Want{})); got != worker("w1") {
		t.Errorf("the server sees %v", got)
	}
	if got := must(w.Peer(c.state, ca.Want{})); got != manager("m1") {
		t.Errorf("the client sees %v", got)
	}
	_, err := m.Peer(s.state, ca.Want{Role: ca.Manager})
	wantErr(t, err, ca.ErrWrongRole)

	unproven := s.state
	unproven.HandshakeComplete = false
	if _, err := m.Peer(unproven, ca.Want{}); err == nil {
		t.Error("believes a peer before the handshake is complete")
	}
}

func TestOldProtocol(t *testing.T) {
	root := newRoot()
	m := sign(root, manager("m1"), 0, epoch)
	old := m.bare()
	old.MaxVersion = tls.VersionTLS12
	if s, c := connect(t, m.credentials(trustOf(root), at(epoch)).Server(ca.Want{}), old); s.err == nil || c.err == nil || c.got != "" {
		t.Errorf("server %v, client %v %q", s.err, c.err, c.got)
	}
}

// TestNothingIsResumed: one who kept a ticket gets no handshake without a look at its certificate.
func TestNothingIsResumed(t *testing.T) {
	root := newRoot()
	m := sign(root, manager("m1"), 0, epoch).credentials(trustOf(root), at(epoch))
	server, client := m.Server(ca.Want{}), sign(root, worker("w1"), 0, epoch).bare()
	client.ServerName, client.ClientSessionCache = "m1", tls.NewLRUClientSessionCache(1)
	for range 2 {
		if s, c := connect(t, server, client); s.err != nil || c.err != nil || s.state.DidResume {
			t.Fatalf("server %v, client %v, resumed %v", s.err, c.err, s.state.DidResume)
		}
	}
}

// refusals are peers that are refused, whichever end they are at.
func refusals(root *ca.Root) map[string]struct {
	peer  *tls.Config
	kind  error
	words string
} {
	type refusal = struct {
		peer  *tls.Config
		kind  error
		words string
	}
	other := newRoot()
	cluster2 := func(n string) ca.Identity { return ca.Identity{Cluster: "cluster2", Node: n, Role: ca.Manager} }
	return map[string]refusal{
		"expired":           {sign(root, manager("m2"), time.Hour, epoch.Add(-time.Hour-time.Second)).bare(), ca.ErrExpired, "node m2"},
		"not yet valid":     {sign(root, manager("m2"), 0, epoch.Add(61*time.Minute)).bare(), ca.ErrNotYetValid, "node m2"},
		"other cluster":     {sign(other, cluster2("m2"), 0, epoch).bare(), ca.ErrOtherCluster, "cluster2"},
		"same root":         {sign(root, cluster2("m2"), 0, epoch).bare(), ca.ErrOtherCluster, "cluster2"},
		"unknown authority": {sign(other, manager("m2"), 0, epoch).bare(), ca.ErrUnknownAuthority, "node m2"},
		"worker":            {sign(root, worker("w2"), 0, epoch).bare(), ca.ErrWrongRole, "node w2"},
	}
}

func TestRefusedPeers(t *testing.T) {
	root := newRoot()
	m := sign(root, manager("m1"), 0, epoch).credentials(trustOf(root), at(epoch))
	want := ca.Want{Role: ca.Manager}
	for name, r := range refusals(root) {
		t.Run("client "+name, func(t *testing.T) {
			s, c := connect(t, m.Server(want), r.peer)
			wantErr(t, s.err, r.kind, r.words)
			if s.got+c.got != "" || c.err == nil {
				t.Errorf("passed %q and %q, client %v", s.got, c.got, c.err)
			}
		})
		t.Run("server "+name, func(t *testing.T) {
			s, c := connect(t, r.peer, m.Client(want))
			wantErr(t, c.err, r.kind, r.words)
			if s.got+c.got != "" {
				t.Errorf("passed %q and %q", s.got, c.got)
			}
		})
	}
	t.Run("client without certificate", func(t *testing.T) {
		s, c := connect(t, m.Server(ca.Want{}), bare(nil))
		if s.err == nil || c.err == nil || s.got+c.got != "" {
			t.Errorf("server %v %q, client %v %q", s.err, s.got, c.err, c.got)
		}
	})
	t.Run("client with another's certificate", func(t *testing.T) {
		thief := sign(root, manager("m2"), 0, epoch)
		thief.key, _ = must2(ca.NewRequest())
		for _, config := range []*tls.Config{m.Server(ca.Want{}), m.JoinServer()} {
			if s, c := connect(t, config, thief.bare()); s.err == nil || s.got+c.got != "" {
				t.Errorf("server %v %q, client %q", s.err, s.got, c.got)
			}
		}
	})
}

// TestNoByteWithoutCertificate draws peers that are right and wrong in several ways at once, and lets both ends of our
// own meet each. What may pass is decided from the draw alone.
func TestNoByteWithoutCertificate(t *testing.T) {
	root, other := newRoot(), newRoot()
	state := must(must(ca.NewState(cluster, root)).Rotate(other, epoch.Add(-100*time.Hour)))
	both, only := must(state.Trust()), trustOf(root)
	next := must(state.Signer())
	seed := [2]uint64{rand.Uint64(), rand.Uint64()}
	t.Logf("seed %v", seed)
	r := rand.New(rand.NewPCG(seed[0], seed[1]))
	strange := newRoot()
	passed := 0
	for i := range 150 {
		pick := func(n int) int { return r.IntN(n) }
		ok := true
		id := ca.Identity{Cluster: cluster, Node: fmt.Sprint("n", i), Role: []ca.Role{ca.Worker, ca.Manager}[pick(2)]}
		want := ca.Want{Role: []ca.Role{"", ca.Worker, ca.Manager}[pick(3)]}
		ok = ok && (want.Role == "" || want.Role == id.Role)
		if pick(4) == 0 {
			want.Node, ok = "n", false
		}
		if pick(6) == 0 {
			id.Cluster, ok = "cluster2", false
		}
		begun, life := epoch, time.Duration(1+pick(5))*time.Hour
		switch pick(5) {
		case 0:
			begun, ok = begun.Add(-life-time.Second*time.Duration(1+pick(1000))), false
		case 1:
			begun, ok = begun.Add(time.Hour+time.Second*time.Duration(1+pick(1000))), false
		}
		trust := []ca.Trust{both, only}[pick(2)]
		signer := []*ca.Root{root, next, strange}[pick(3)]
		ok = ok && signer != strange
		peer := sign(signer, id, life, begun)
		cert := tls.Certificate{PrivateKey: peer.key}
		for _, c := range peer.chain() {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
		shown := &cert
		switch pick(8) {
		case 0: // without the way to the old root
			ok = ok && (len(cert.Certificate) == 1 || len(both.Encode()) == len(trust.Encode()))
			cert.Certificate = cert.Certificate[:1]
		case 1: // nothing
			shown, ok = nil, false
		case 2: // another's key
			cert.PrivateKey, _ = must2(ca.NewRequest())
			ok = false
		case 3: // changed
			leaf := []byte(string(cert.Certificate[0]))
			leaf[len(leaf)-1-pick(8)] ^= 1 << pick(8)
			cert.Certificate[0], ok = leaf, false
		}
		own := sign(root, manager("m1"), ca.DefaultLife, epoch).credentials(trust, at(epoch))
		s, c := connect(t, own.Server(want), bare(shown))
		check := func(where string, ours, theirs end) {
			if !ok && (ours.err == nil || ours.got != "" || theirs.got != "") {
				t.Errorf("draw %d at the %s: passed %q and %q, error %v", i, where, ours.got, theirs.got, ours.err)
			}
			if ok && (ours.err != nil || ours.got == "" || theirs.got == "") {
				t.Errorf("draw %d at the %s: a good peer is refused: %v", i, where, ours.err)
			}
		}
		check("server", s, c)
		server := bare(shown)
		if shown == nil {
			server = bare(&tls.Certificate{})
		}
		s, c = connect(t, server, own.Client(want))
		check("client", c, s)
		if ok {
			passed++
		}
	}
	if passed == 0 {
		t.Error("not one draw was good")
	}
}

func TestJoin(t *testing.T) {
	root := newRoot()
	state := must(ca.NewState(cluster, root))
	trust := trustOf(root)
	m := sign(root, manager("m1"), 0, epoch).credentials(trust, at(epoch))
	token := state.Tokens.Worker

	s, c := connect(t, m.JoinServer(), token.Client(at(epoch)))
	if s.err != nil || c.err != nil || c.got == "" {
		t.Fatalf("server %v, client %v", s.err, c.err)
	}
	got, id, err := token.Peer(c.state, epoch)
	if err != nil || id != manager("m1") || string(got.Encode()) != string(trust.Encode()) {
		t.Errorf("joined %v, %v", id, err)
	}
	_, err = m.Peer(s.state, ca.Want{})
	wantErr(t, err, ca.ErrNoCertificate)
	if _, _, err := token.Peer(tls.ConnectionState{PeerCertificates: c.state.PeerCertificates}, epoch); err == nil {
		t.Error("believes a server before the handshake is complete")
	}

	// One who has a certificate may come too, if it is good.
	w := sign(root, worker("w1"), 0, epoch)
	if s, c := connect(t, m.JoinServer(), w.credentials(trust, at(epoch)).Client(ca.Want{})); s.err != nil || c.err != nil || must(m.Peer(s.state, ca.Want{})) != worker("w1") {
		t.Errorf("server %v, client %v", s.err, c.err)
	}
	for name, r := range refusals(root) {
		if r.kind == ca.ErrWrongRole {
			continue
		}
		if s, _ := connect(t, m.JoinServer(), r.peer); s.err == nil || s.got != "" {
			t.Errorf("%s may join", name)
		}
	}

	// A stranger believes nobody else.
	imposter := newRoot()
	for name, server := range map[string]*ca.Credentials{
		"other root": sign(imposter, manager("m1"), 0, epoch).credentials(trustOf(imposter), at(epoch)),
		"worker":     w.credentials(trust, at(epoch)),
	} {
		if s, c := connect(t, server.JoinServer(), token.Client(at(epoch))); c.err == nil || s.got+c.got != "" {
			t.Errorf("%s: passed %q and %q", name, s.got, c.got)
		}
	}
	_, c = connect(t, m.JoinServer(), token.Client(at(epoch.Add(ca.DefaultLife+time.Hour))))
	wantErr(t, c.err, ca.ErrExpired)
}

func TestReplace(t *testing.T) {
	root := newRoot()
	trust := trustOf(root)
	now := epoch
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	first := sign(root, worker("n1"), time.Hour, epoch)
	a := first.credentials(trust, clock)
	b := sign(root, manager("m1"), ca.DefaultLife, epoch).credentials(trust, clock)
	server, client := a.Server(ca.Want{}), b.Client(ca.Want{}) // made once, as a listener has them
	s, c := connect(t, server, client)
	if s.err != nil || c.err != nil {
		t.Fatal(s.err, c.err)
	}
	standing := c.state

	mu.Lock()
	now = now.Add(2 * time.Hour)
	mu.Unlock()
	_, c = connect(t, server, client)
	wantErr(t, c.err, ca.ErrExpired, "node n1")
	_, err := b.Peer(standing, ca.Want{})
	wantErr(t, err, ca.ErrExpired)

	next := sign(root, manager("n1"), time.Hour, clock()) // renewed, and promoted
	if err := a.Replace(next.material(trust)); err != nil {
		t.Fatal(err)
	}
	if !a.Held().Leaf().Equal(next.chain()[0]) {
		t.Error("not replaced")
	}
	s, c = connect(t, server, client)
	if s.err != nil || c.err != nil || must(b.Peer(c.state, ca.Want{})) != manager("n1") {
		t.Fatal(s.err, c.err)
	}
	if s, c = connect(t, b.Server(ca.Want{}), a.Client(ca.Want{})); s.err != nil || c.err != nil {
		t.Fatal(s.err, c.err)
	}

	for name, m := range map[string]ca.Material{
		"another node": sign(root, manager("n2"), 0, epoch).material(trust),
		"nothing":      {},
		"other key":    {Chain: next.chain(), Key: first.key, Trust: trust},
		"other trust":  {Chain: next.chain(), Key: next.key, Trust: trustOf(newRoot())},
	} {
		if err := a.Replace(m); err == nil {
			t.Errorf("%s is accepted", name)
		}
		if !a.Held().Leaf().Equal(next.chain()[0]) {
			t.Errorf("%s was taken", name)
		}
		if _, err := ca.NewCredentials(m, clock); err == nil && name != "another node" {
			t.Errorf("%s makes credentials", name)
		}
	}
}

func TestReplaceWhileConnecting(t *testing.T) {
	state := newState()
	old := must(state.Root())
	state = must(state.Rotate(newRoot(), epoch))
	next, trust := must(state.Signer()), must(state.Trust())
	a := sign(old, manager("m1"), 0, epoch).credentials(trust, at(epoch))
	b := sign(old, manager("m2"), 0, epoch).credentials(trust, at(epoch))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := a.Replace(sign([]*ca.Root{old, next}[i%2], manager("m1"), 0, epoch).material(trust)); err != nil {
				t.Error(err)
			}
		}
	}()
	server, client := a.Server(ca.Want{}), b.Client(ca.Want{})
	for range 50 {
		if s, c := connect(t, server, client); s.err != nil || c.err != nil {
			t.Fatal(s.err, c.err)
		}
	}
	close(stop)
	<-done
}

// host is one of a cluster whose root changes: a node, and what it trusts.
type host struct {
	node
	trust ca.Trust
}

func TestRotationKeepsLinks(t *testing.T) {
	s := newState()
	old := must(s.Root())
	rotating := must(s.Rotate(newRoot(), epoch))
	next := must(rotating.Signer())
	before, during := must(s.Trust()), must(rotating.Trust())
	moved := must(must(rotating.Moved(sign(next, manager("m1"), 0, epoch).chain(), epoch)).Finish([]string{"m1"}))
	after := must(moved.Trust())

	hosts := map[string]host{
		"has heard of nothing": {sign(old, manager("m1"), 0, epoch), before},
		"trusts both":          {sign(old, manager("m1"), 0, epoch), during},
		"has renewed":          {sign(next, manager("m1"), 0, epoch), during},
		"renewed, old trust":   {sign(next, manager("m1"), 0, epoch), before},
		"joined later":         {sign(must(moved.Signer()), manager("m1"), 0, epoch), after},
		"has finished":         {sign(next, manager("m1"), 0, epoch), after},
	}
	believes := func(a, b string) bool { // a the certificate of b
		switch a {
		case "has finished", "joined later":
			return b != "has heard of nothing" && b != "trusts both"
		case "has heard of nothing", "renewed, old trust":
			return b != "joined later"
		}
		return true
	}
	for a, ha := range hosts {
		for b, hb := range hosts {
			server, client := ha.credentials(ha.trust, at(epoch)), hb.credentials(hb.trust, at(epoch))
			se, ce := connect(t, server.Server(ca.Want{}), client.Client(ca.Want{}))
			if (se.err == nil && ce.err == nil) != (believes(a, b) && believes(b, a)) {
				t.Errorf("one that %s to one that %s: %v, %v", b, a, se.err, ce.err)
			}
		}
	}

	// Strangers join all the while: their token names the old root until the end.
	for name, h := range hosts {
		token := s.Tokens.Worker
		if name == "has finished" || name == "joined later" {
			token = moved.Tokens.Worker
		}
		if _, c := connect(t, h.credentials(h.trust, at(epoch)).JoinServer(), token.Client(at(epoch))); c.err != nil {
			t.Errorf("join at one that %s: %v", name, c.err)
		}
	}
	h := hosts["has finished"]
	_, c := connect(t, h.credentials(h.trust, at(epoch)).JoinServer(), s.Tokens.Worker.Client(at(epoch)))
	wantErr(t, c.err, ca.ErrNotPinned)
	if _, err := moved.Tokens.Admit(s.Tokens.Manager.String()); err == nil || !strings.Contains(err.Error(), "another root") {
		t.Errorf("got %v", err)
	}
}
