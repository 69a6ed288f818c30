package ca_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"stated.dev/stated/cluster/ca"
)

// FuzzToken: what is taken for a token is written as it was read, and nothing else equals it.
func FuzzToken(f *testing.F) {
	f.Add(example)
	f.Add("SWMTKN-1-")
	f.Add(ca.NewUnlockKey().String())
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ca.ParseToken(s)
		if err != nil {
			wantErr(t, err, ca.ErrInvalidToken)
			return
		}
		if token.String() != s {
			t.Errorf("%q is written as %q", s, token)
		}
		if token.Equal(ca.NewToken(token.Root())) {
			t.Error("a new secret is an old one")
		}
	})
}

// FuzzUnlockKey: no two texts are the same key.
func FuzzUnlockKey(f *testing.F) {
	f.Add("SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8")
	f.Add(example)
	f.Fuzz(func(t *testing.T, s string) {
		key, err := ca.ParseUnlockKey(s)
		if err != nil {
			wantErr(t, err, ca.ErrInvalidUnlockKey)
			return
		}
		if string(bytes.TrimSpace([]byte(s))) != key.String() {
			t.Errorf("%q is written as %q", s, key)
		}
	})
}

// FuzzRoot: an authority that is taken survives encoding, and what it signs is believed.
func FuzzRoot(f *testing.F) {
	root := newRoot()
	s := must(newState().Rotate(root, epoch))
	f.Add(root.EncodeCertificates(), must(root.EncodeKey()))
	f.Add(root.EncodeCertificates(), []byte{})
	f.Add([]byte(s.Rotation.CrossSigned), []byte(s.Key))
	_, request := must2(ca.NewRequest())
	f.Add(request, request)
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		got, err := ca.LoadRoot(cert, key)
		if err != nil {
			return
		}
		again, err := ca.LoadRoot(got.EncodeCertificates(), must(got.EncodeKey()))
		if err != nil || again.Digest() != got.Digest() || again.External() != got.External() {
			t.Fatalf("does not survive encoding: %v", err)
		}
		issued, err := got.Sign(request, worker("n"), 0, epoch)
		if err != nil {
			return
		}
		_ = must(trustOf(got).Verify(must(ca.ParseCertificates(issued)), ca.Want{}, epoch))
	})
}

// FuzzRequest: what is no request of ours is refused, and never more than a node's certificate comes of it.
func FuzzRequest(f *testing.F) {
	_, request := must2(ca.NewRequest())
	f.Add(request)
	root := newRoot()
	f.Add(root.EncodeCertificates())
	f.Fuzz(func(t *testing.T, data []byte) {
		issued, err := root.Sign(data, worker("n"), 0, epoch)
		if err != nil {
			wantErr(t, err, ca.ErrInvalidRequest)
			return
		}
		if got := must(trustOf(root).Verify(must(ca.ParseCertificates(issued)), ca.Want{}, epoch)); got != worker("n") {
			t.Errorf("it is %v's", got)
		}
	})
}

// FuzzKeyFile: a file that opens can be written again and holds the same; one that does not is left alone.
func FuzzKeyFile(f *testing.F) {
	root := newRoot()
	n := sign(root, manager("m1"), 0, epoch)
	f.Add(slices.Concat(n.issued, must(ca.EncodeKey(n.key)), root.EncodeCertificates()))
	dir, unlock := f.TempDir(), ca.NewUnlockKey()
	sealed := open(f, filepath.Join(dir, "sealed.pem"))
	check(f, sealed.SetUnlockKey(unlock))
	check(f, sealed.Write(n.material(trustOf(root))))
	f.Add(must(os.ReadFile(filepath.Join(dir, "sealed.pem"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "node.pem")
		check(t, os.WriteFile(path, data, 0o600))
		file, err := ca.OpenKeyFile(path)
		if err != nil {
			wantErr(t, err, ca.ErrInvalidKeyFile)
			return
		}
		if file.Locked() && file.Unlock(unlock) != nil {
			return
		}
		m, err := file.Held()
		check(t, err)
		check(t, file.Write(m))
		again := open(t, path)
		if again.Locked() {
			check(t, again.Unlock(unlock))
		}
		if !same(must(again.Held()), m) {
			t.Error("holds something else")
		}
	})
}
