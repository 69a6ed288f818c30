package ca_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/cluster/ca"
)

// kept is the state after a way through the replicated object.
func kept(t *testing.T, s ca.State) (out ca.State) {
	t.Helper()
	if err := json.Unmarshal(must(json.Marshal(s)), &out); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s, out) {
		t.Errorf("%+v is kept as %+v", s, out)
	}
	return out
}

func TestRotation(t *testing.T) {
	first := kept(t, newState())
	target := newRoot()
	s := kept(t, must(first.Rotate(target, epoch)))
	signer := must(s.Signer())
	if !signer.Certificate().Equal(target.Certificate()) || !bytes.Equal([]byte(s.Cert), must(s.Root()).EncodeCertificates()) {
		t.Fatal("the signer is not the new root, or the root is not the old one")
	}
	if roots := must(ca.ParseCertificates(must(s.Trust()).Encode())); len(roots) != 2 {
		t.Errorf("trusts %d roots", len(roots))
	}
	if first.Rotation != nil {
		t.Error("the value was changed")
	}
	nodes := []string{"c", "a", "b"}
	for i, name := range nodes {
		_, err := s.Finish(nodes)
		wantErr(t, err, ca.ErrNotMoved, name)
		if got := s.Waiting(nodes); !slices.Equal(got, nodes[i:]) {
			t.Errorf("waits for %q", got)
		}
		_, err = s.Moved(sign(must(s.Root()), worker(name), 0, epoch).chain(), epoch)
		wantErr(t, err, ca.ErrUnknownAuthority, "node "+name, "not moved")
		was := s
		chain := sign(signer, worker(name), 0, epoch).chain()
		s = kept(t, must(s.Moved(chain, epoch)))
		if again := must(s.Moved(chain, epoch)); !reflect.DeepEqual(again, s) {
			t.Error("a node moves twice")
		}
		if len(was.Rotation.Moved) != i {
			t.Error("the value was changed")
		}
	}
	if !slices.Equal(s.Rotation.Moved, []string{"a", "b", "c"}) {
		t.Errorf("moved: %q", s.Rotation.Moved)
	}
	_, err := s.Finish(nil)
	wantErr(t, err, errdefs.ErrInvalidArgument)
	_, err = s.Finish([]string{"a", "d"})
	wantErr(t, err, ca.ErrNotMoved, "d")
	end := kept(t, must(s.Finish(nodes)))
	if end.Rotation != nil || !must(end.Root()).Certificate().Equal(target.Certificate()) || must(end.Root()).External() {
		t.Error("the new root does not count")
	}
	if end.Tokens.Worker.Root() != target.Digest() || end.Tokens.Manager.Root() != target.Digest() {
		t.Error("tokens name the old root")
	}
	_, err = end.Finish(nodes)
	wantErr(t, err, errdefs.ErrFailedPrecondition, "none is under way")
	if got := must(end.Moved(nil, epoch)); !reflect.DeepEqual(got, end) {
		t.Error("a node moves though nothing is under way")
	}
}

func TestRotationAgain(t *testing.T) {
	s := newState()
	s = must(s.Rotate(newRoot(), epoch))
	abandoned := must(s.Signer())
	n := sign(abandoned, worker("n"), 0, epoch)
	s = must(s.Moved(n.chain(), epoch))

	same := must(s.Rotate(must(ca.LoadRoot(abandoned.EncodeCertificates(), must(abandoned.EncodeKey()))), epoch))
	if !reflect.DeepEqual(same, s) {
		t.Error("the same target begins anew")
	}

	third := newRoot()
	again := kept(t, must(s.Rotate(third, epoch)))
	if len(again.Rotation.Moved) != 0 {
		t.Error("nodes count as moved to what they have not seen")
	}
	if got := must(must(again.Trust()).Verify(n.chain(), ca.Want{}, epoch)); got != worker("n") {
		t.Errorf("got %v", got)
	}
	_, err := again.Moved(n.chain(), epoch)
	wantErr(t, err, ca.ErrUnknownAuthority)
	moved := sign(must(again.Signer()), worker("n"), 0, epoch)
	_ = must(must(s.Trust()).Verify(moved.chain(), ca.Want{}, epoch)) // by one that still trusts the abandoned root
	end := must(must(again.Moved(moved.chain(), epoch)).Finish([]string{"n"}))
	_, err = must(end.Trust()).Verify(n.chain(), ca.Want{}, epoch)
	wantErr(t, err, ca.ErrUnknownAuthority)

	back := kept(t, must(s.Rotate(must(s.Root()), epoch)))
	if back.Rotation != nil || back.Tokens != s.Tokens {
		t.Error("the rotation was not given up")
	}
	_ = must(must(back.Trust()).Verify(n.chain(), ca.Want{}, epoch))
}

func TestRotationToExternal(t *testing.T) {
	s := newState()
	there := newRoot() // what the external authority has
	target := must(ca.LoadRoot(there.EncodeCertificates(), nil))
	s = kept(t, must(s.Rotate(target, epoch)))
	signer := must(s.Signer())
	key, request := must2(ca.NewRequest())
	_, err := signer.Sign(request, worker("n"), 0, epoch)
	wantErr(t, err, ca.ErrExternal)
	n := node{key, must(signer.Complete(must(there.Sign(request, worker("n"), 0, epoch)), request, worker("n"), epoch))}
	_ = must(trustOf(must(s.Root())).Verify(n.chain(), ca.Want{}, epoch)) // under the old root alone
	s = must(must(s.Moved(n.chain(), epoch)).Finish([]string{"n"}))

	_, err = s.Rotate(newRoot(), epoch)
	wantErr(t, err, ca.ErrExternal, "set the old root's key first")
	s = must(s.Rotate(there, epoch)) // which brings the key
	if s.Rotation != nil || s.Key == "" {
		t.Error("the key was not taken")
	}
	_ = must(s.Rotate(newRoot(), epoch))
}

func TestRotationWithIntermediates(t *testing.T) {
	build := func(name string, change func(*x509.Certificate)) *ca.Root {
		top := makeAuthority(name, ecKey(elliptic.P256()), nil, nil)
		mid := makeAuthority(name+" mid", ecKey(elliptic.P256()), &top, change)
		return must(ca.LoadRoot(slices.Concat(mid.pem(), top.pem()), mid.keyPEM()))
	}
	s := must(ca.NewState(cluster, build("one", nil)))
	old := must(s.Trust())
	s = kept(t, must(s.Rotate(build("two", nil), epoch)))
	n := sign(must(s.Signer()), worker("n"), 0, epoch)
	if len(n.chain()) != 4 {
		t.Errorf("chain of %d", len(n.chain()))
	}
	_ = must(old.Verify(n.chain(), ca.Want{}, epoch))
	s = must(must(s.Moved(n.chain(), epoch)).Finish([]string{"n"}))
	_ = must(must(s.Trust()).Verify(n.chain(), ca.Want{}, epoch))

	narrow := must(ca.NewState(cluster, build("narrow", func(c *x509.Certificate) { c.MaxPathLenZero = true })))
	_, err := narrow.Rotate(newRoot(), epoch)
	wantErr(t, err, ca.ErrInvalidRoot, "does not allow")
}

// TestRotationToSameKey: a root that ends is followed by one with the same name and key.
func TestRotationToSameKey(t *testing.T) {
	short := makeAuthority("root", ecKey(elliptic.P256()), nil, nil)
	long := makeAuthority("root", short.key, nil, func(c *x509.Certificate) { c.NotAfter = epoch.Add(10000 * time.Hour) })
	s := must(ca.NewState(cluster, must(ca.LoadRoot(short.pem(), short.keyPEM()))))
	old := must(s.Trust())
	s = kept(t, must(s.Rotate(must(ca.LoadRoot(long.pem(), long.keyPEM())), epoch)))
	n := sign(must(s.Signer()), worker("n"), 0, epoch)
	_ = must(old.Verify(n.chain(), ca.Want{}, epoch))
	_ = n.material(must(s.Trust()))
	s = must(must(s.Moved(n.chain(), epoch)).Finish([]string{"n"}))
	_ = must(must(s.Trust()).Verify(n.chain(), ca.Want{}, epoch))
}

// TestRotationsAtRandom draws ways through rotations that begin, change, are given up and end, with hosts that hear of
// them late. At each step all hosts believe each other, and one who joins with the current token believes all managers.
func TestRotationsAtRandom(t *testing.T) {
	roots := make([]*ca.Root, 5)
	for i := range roots {
		roots[i] = newRoot()
	}
	finished := 0
	for range 20 {
		seed := [2]uint64{rand.Uint64(), rand.Uint64()}
		r := rand.New(rand.NewPCG(seed[0], seed[1]))
		s := must(ca.NewState(cluster, roots[0]))
		names := []string{"a", "b", "c"}
		hosts := map[string]*host{}
		renew := func(name string) {
			hosts[name] = &host{sign(must(s.Signer()), manager(name), 0, epoch), must(s.Trust())}
		}
		for _, name := range names {
			renew(name)
		}
		var did []string
		for range 60 {
			name := names[r.IntN(len(names))]
			var what string
			switch n := r.IntN(20); {
			case n == 0:
				target := r.IntN(len(roots))
				what = fmt.Sprint("rotate to ", target)
				s = must(s.Rotate(roots[target], epoch))
			case n < 7:
				what = "renew " + name
				renew(name)
			case n < 9:
				what = "tell " + name
				hosts[name].trust = must(s.Trust())
			case n < 16:
				what = "see " + name
				if next, err := s.Moved(hosts[name].chain(), epoch); err == nil {
					s = next
				}
			default:
				what = "finish"
				if next, err := s.Finish(names); err == nil {
					s, finished = next, finished+1
				}
			}
			did = append(did, what)
			for an, a := range hosts {
				for bn, b := range hosts {
					if _, err := a.trust.Verify(b.chain(), ca.Want{}, epoch); err != nil {
						t.Fatalf("seed %v: %q: %s no longer believes %s: %v", seed, did, an, bn, err)
					}
				}
				shown := append(a.chain(), must(ca.ParseCertificates(a.trust.Encode()))...)
				if _, _, err := s.Tokens.Worker.Verify(shown, epoch); err != nil {
					t.Fatalf("seed %v: %q: nobody can join at %s: %v", seed, did, an, err)
				}
			}
		}
	}
	if finished == 0 {
		t.Error("not one rotation ended")
	}
}

func TestRotateRefuses(t *testing.T) {
	s := newState()
	expired := makeAuthority("old", ecKey(elliptic.P256()), nil, nil)
	later := epoch.Add(2000 * time.Hour)
	_, err := s.Rotate(must(ca.LoadRoot(expired.pem(), expired.keyPEM())), later)
	wantErr(t, err, ca.ErrExpired, "CN=old", cluster)
	_, err = s.Rotate(newRoot(), epoch.Add(ca.RootLife+time.Hour))
	wantErr(t, err, ca.ErrExpired)
	_, err = ca.NewState("a cluster", newRoot())
	wantErr(t, err, ca.ErrInvalidIdentity)

	other := newState()
	for name, damage := range map[string]func(*ca.State){
		"root":         func(s *ca.State) { s.Cert = "" },
		"key":          func(s *ca.State) { s.Key = other.Key },
		"next":         func(s *ca.State) { s.Rotation.Cert = "" },
		"cross-signed": func(s *ca.State) { s.Rotation.CrossSigned = "" },
	} {
		d := must(s.Rotate(newRoot(), epoch))
		damage(&d)
		_, rootErr := d.Trust()
		_, rotateErr := d.Rotate(newRoot(), epoch)
		_, movedErr := d.Moved(nil, epoch)
		if errors.Join(rootErr, rotateErr, movedErr) == nil {
			t.Errorf("a damaged %s is not noticed", name)
		}
	}
}
