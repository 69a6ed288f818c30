package ca_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/cluster/ca"
	"stated.dev/stated/internal/fault"
)

func TestUnlockKeyForm(t *testing.T) {
	const shown = "SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8"
	if got := must(ca.ParseUnlockKey(" " + shown + "\n")).String(); got != shown {
		t.Errorf("got %s", got)
	}
	for range 100 {
		k := ca.NewUnlockKey()
		if s := k.String(); len(s) != 9+43 || !must(ca.ParseUnlockKey(s)).Equal(k) || k.IsZero() {
			t.Fatalf("%s is not parsed to what it was", s)
		}
	}
	if k := (ca.UnlockKey{}); k.String() != "" || !k.IsZero() || k.Equal(ca.NewUnlockKey()) || !k.Equal(k) {
		t.Error("no key is one")
	}
	for name, c := range map[string]struct{ key, words string }{
		"empty":         {" ", "empty"},
		"join token":    {example, "join token"},
		"else":          {"hello", "does not begin with SWMKEY-"},
		"version":       {"SWMKEY-2-" + shown[9:], `version is "2"`},
		"short":         {shown[:len(shown)-1], "has 42 characters"},
		"long":          {shown + "A", "has 44 characters"},
		"padded":        {shown + "=", "has 44 characters"},
		"alphabet":      {shown[:20] + "_" + shown[21:], "not base 64"},
		"inner line":    {shown[:20] + "\n" + shown[21:], "white space"},
		"trailing bits": {shown[:len(shown)-1] + "9", "not base 64"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ca.ParseUnlockKey(c.key)
			wantErr(t, err, ca.ErrInvalidUnlockKey, c.words)
			if strings.Contains(err.Error(), shown[9:]) {
				t.Errorf("%v gives the key away", err)
			}
		})
	}
}

func open(t testing.TB, path string) *ca.KeyFile {
	t.Helper()
	f, err := ca.OpenKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// same reports whether two hosts hold the same.
func same(a, b ca.Material) bool {
	return a.Key.Equal(b.Key) && a.Leaf().Equal(b.Leaf()) && len(a.Chain) == len(b.Chain) &&
		bytes.Equal(a.Trust.Encode(), b.Trust.Encode()) && a.Trust.Cluster == b.Trust.Cluster && bytes.Equal(a.DataKey, b.DataKey)
}

func TestKeyFile(t *testing.T) {
	root := newRoot()
	path := filepath.Join(t.TempDir(), "odd [name]*", "node.pem")
	check(t, os.Mkdir(filepath.Dir(path), 0o700))
	f := open(t, path)
	_, err := f.Held()
	wantErr(t, err, ca.ErrNoKey, path)
	_, err = f.Identity()
	wantErr(t, err, ca.ErrNoKey)

	m := sign(root, manager("m1"), 0, epoch).material(trustOf(root))
	m.DataKey = bytes.Repeat([]byte{7}, 32)
	check(t, f.Write(m))
	if got := must(open(t, path).Held()); !same(got, m) {
		t.Error("not what was written")
	}
	info := must(os.Stat(path))
	if info.Mode() != 0o600 {
		t.Errorf("mode is %v", info.Mode())
	}
	wantErr(t, f.Unlock(ca.NewUnlockKey()), errdefs.ErrFailedPrecondition, "not locked")
	check(t, f.Unlock(ca.UnlockKey{}))

	// Locked.
	key := ca.NewUnlockKey()
	check(t, f.SetUnlockKey(key))
	if !same(must(f.Held()), m) || f.Locked() {
		t.Error("a host that runs has lost its key")
	}
	text := must(os.ReadFile(path))
	if bytes.Contains(text, []byte("PRIVATE")) || bytes.Contains(text, []byte("DATA KEY")) {
		t.Errorf("in the clear: %s", text)
	}
	f = open(t, path)
	if !f.Locked() || must(f.Identity()) != manager("m1") {
		t.Error("not locked, or nobody's")
	}
	_, err = f.Held()
	wantErr(t, err, ca.ErrLocked, path, "unlock key")
	wantErr(t, f.Write(m), ca.ErrLocked)
	wantErr(t, f.SetUnlockKey(ca.UnlockKey{}), ca.ErrLocked)
	for _, wrong := range []ca.UnlockKey{ca.NewUnlockKey(), {}} {
		wantErr(t, f.Unlock(wrong), ca.ErrWrongUnlockKey, path)
		if !f.Locked() || !bytes.Equal(must(os.ReadFile(path)), text) {
			t.Error("a wrong key changed something")
		}
	}
	check(t, f.Unlock(key))
	if !same(must(f.Held()), m) || f.Locked() || !bytes.Equal(must(os.ReadFile(path)), text) {
		t.Error("unlocking gave something else, or wrote")
	}
	wantErr(t, f.Unlock(ca.NewUnlockKey()), ca.ErrWrongUnlockKey)
	check(t, f.Unlock(key))

	// A renewal stays sealed; the unlock key rotates; a new certificate may have another role.
	renewed := sign(root, worker("m1"), 0, epoch).material(trustOf(root))
	check(t, f.Write(renewed))
	rotated := ca.NewUnlockKey()
	check(t, f.SetUnlockKey(rotated))
	f = open(t, path)
	wantErr(t, f.Unlock(key), ca.ErrWrongUnlockKey)
	check(t, f.Unlock(rotated))
	if !same(must(f.Held()), renewed) {
		t.Error("not what was written")
	}

	// Open again.
	check(t, f.SetUnlockKey(ca.UnlockKey{}))
	if f = open(t, path); f.Locked() || !same(must(f.Held()), renewed) {
		t.Error("still locked")
	}

	// What is not this node's is refused.
	text = must(os.ReadFile(path))
	for name, m := range map[string]ca.Material{
		"another node": sign(root, manager("m2"), 0, epoch).material(trustOf(root)),
		"nothing":      {},
		"other key":    {Chain: renewed.Chain, Key: m.Key, Trust: m.Trust},
		"other trust":  {Chain: renewed.Chain, Key: renewed.Key, Trust: trustOf(newRoot())},
		"no trust":     {Chain: renewed.Chain, Key: renewed.Key},
	} {
		if err := f.Write(m); err == nil || !bytes.Equal(must(os.ReadFile(path)), text) {
			t.Errorf("%s was written: %v", name, err)
		}
	}
}

func TestKeyFileSealedFromTheStart(t *testing.T) {
	root, path, key := newRoot(), filepath.Join(t.TempDir(), "node.pem"), ca.NewUnlockKey()
	f := open(t, path)
	check(t, f.SetUnlockKey(key))
	check(t, f.Write(sign(root, manager("m1"), 0, epoch).material(trustOf(root))))
	if f = open(t, path); !f.Locked() {
		t.Error("written in the clear")
	}
	check(t, f.Unlock(key))
}

// TestKeyFileStaysAsItIs: what a host writes after its unlock key was changed is under the new key, without a restart.
func TestKeyFileStaysAsItIs(t *testing.T) {
	root, path := newRoot(), filepath.Join(t.TempDir(), "node.pem")
	f := open(t, path)
	check(t, f.Write(sign(root, manager("m1"), 0, epoch).material(trustOf(root))))
	for _, key := range []ca.UnlockKey{ca.NewUnlockKey(), ca.NewUnlockKey(), {}, ca.NewUnlockKey()} {
		check(t, f.SetUnlockKey(key))
		m := sign(root, manager("m1"), 0, epoch).material(trustOf(root))
		check(t, f.Write(m))
		again := open(t, path)
		if again.Locked() == key.IsZero() {
			t.Fatalf("locked: %v", again.Locked())
		}
		check(t, again.Unlock(key))
		if !same(must(again.Held()), m) || !same(must(f.Held()), m) {
			t.Error("not what was written")
		}
	}
}

// TestKeyFileLongOff: a host that was off until all had expired, an old root long before, still knows who it was.
func TestKeyFileLongOff(t *testing.T) {
	gone := makeAuthority("gone", ecKey(elliptic.P256()), nil, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = epoch.Add(-100*time.Hour), epoch.Add(-50*time.Hour)
	})
	root := must(ca.NewRoot(epoch.Add(-10 * time.Hour)))
	trust := must(ca.NewTrust(cluster, slices.Concat(gone.pem(), root.EncodeCertificates())))
	path := filepath.Join(t.TempDir(), "node.pem")
	check(t, open(t, path).Write(sign(root, manager("m1"), time.Hour, epoch).material(trust)))
	c := must(ca.NewCredentials(must(open(t, path).Held()), at(epoch.Add(ca.RootLife))))
	_, err := trust.Verify(c.Held().Chain, ca.Want{}, epoch.Add(ca.RootLife))
	wantErr(t, err, ca.ErrExpired)
}

func TestKeyFileDuringRotation(t *testing.T) {
	s := must(newState().Rotate(newRoot(), epoch))
	m := sign(must(s.Signer()), manager("m1"), 0, epoch).material(must(s.Trust()))
	path := filepath.Join(t.TempDir(), "node.pem")
	check(t, open(t, path).Write(m))
	if got := must(open(t, path).Held()); !same(got, m) || len(got.Chain) != 2 {
		t.Error("chain or roots are lost")
	}
}

func TestKeyFileDamaged(t *testing.T) {
	root := newRoot()
	n := sign(root, manager("m1"), 0, epoch)
	other := sign(root, manager("m2"), 0, epoch)
	keyPEM := must(ca.EncodeKey(n.key))
	roots := root.EncodeCertificates()
	data := pem.EncodeToMemory(&pem.Block{Type: "STATED DATA KEY", Bytes: []byte("d")})
	seal := func(b string) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "STATED SEALED KEY", Bytes: []byte(b)})
	}
	for name, c := range map[string]struct {
		text  []byte
		words string
	}{
		"empty":           {nil, "no PEM block"},
		"zeros":           {make([]byte, 4096), "no PEM block"},
		"cut off":         {slices.Concat(n.issued, keyPEM, roots)[:600], "damaged"},
		"no key":          {slices.Concat(n.issued, roots), "no key"},
		"no roots":        {slices.Concat(n.issued, keyPEM), "there is none"},
		"no certificate":  {slices.Concat(keyPEM, roots), "no certificate before"},
		"other's key":     {slices.Concat(n.issued, must(ca.EncodeKey(other.key)), roots), "does not belong"},
		"other root":      {slices.Concat(n.issued, keyPEM, newRoot().EncodeCertificates()), "unknown authority"},
		"leaf as root":    {slices.Concat(n.issued, keyPEM, other.issued), "not a self-signed"},
		"root as leaf":    {slices.Concat(roots, keyPEM, roots), "authority's"},
		"two keys":        {slices.Concat(n.issued, keyPEM, keyPEM, roots), "out of place"},
		"other curve":     {slices.Concat(n.issued, must(ca.EncodeKey(ecKey(elliptic.P384()))), roots), "does not belong"},
		"data key first":  {slices.Concat(n.issued, data, keyPEM, roots), "not a private key"},
		"key at the end":  {slices.Concat(n.issued, keyPEM, roots, data), "out of place"},
		"sealed and open": {slices.Concat(n.issued, seal("x"), keyPEM, roots), "not a private key"},
		"sealed, short":   {slices.Concat(n.issued, seal("stky\x01"), roots), "sealed key is damaged"},
		"sealed, other":   {slices.Concat(n.issued, seal(strings.Repeat("x", 100)), roots), "sealed key is damaged"},
		"sealed, newer":   {slices.Concat(n.issued, seal("stky\x02"+strings.Repeat("x", 100)), roots), "version 2"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "node.pem")
			check(t, os.WriteFile(path, c.text, 0o600))
			_, err := ca.OpenKeyFile(path)
			wantErr(t, err, ca.ErrInvalidKeyFile, path, c.words)
			if !bytes.Equal(must(os.ReadFile(path)), c.text) {
				t.Error("the file was changed")
			}
		})
	}
	t.Run("sealed, flipped", func(t *testing.T) {
		path, key := filepath.Join(t.TempDir(), "node.pem"), ca.NewUnlockKey()
		f := open(t, path)
		check(t, f.SetUnlockKey(key))
		check(t, f.Write(n.material(trustOf(root))))
		text := must(os.ReadFile(path))
		at := bytes.Index(text, []byte("SEALED KEY-----\n")) + 100
		text[at] = map[bool]byte{true: 'B', false: 'A'}[text[at] == 'A']
		check(t, os.WriteFile(path, text, 0o600))
		wantErr(t, open(t, path).Unlock(key), ca.ErrWrongUnlockKey)
	})
	t.Run("a sealed key beside another's certificate", func(t *testing.T) {
		path, key := filepath.Join(t.TempDir(), "node.pem"), ca.NewUnlockKey()
		f := open(t, path)
		check(t, f.SetUnlockKey(key))
		check(t, f.Write(n.material(trustOf(root))))
		text := must(os.ReadFile(path))
		check(t, os.WriteFile(path, slices.Concat(other.issued, text[len(n.issued):]), 0o600))
		f = open(t, path)
		wantErr(t, f.Unlock(key), ca.ErrWrongUnlockKey, "changed")
		if !f.Locked() {
			t.Error("taken all the same")
		}
	})
	t.Run("a locked host is given another root", func(t *testing.T) {
		path, key := filepath.Join(t.TempDir(), "node.pem"), ca.NewUnlockKey()
		f := open(t, path)
		check(t, f.SetUnlockKey(key))
		check(t, f.Write(n.material(trustOf(root))))
		text := must(os.ReadFile(path))
		check(t, os.WriteFile(path, append(text, newRoot().EncodeCertificates()...), 0o600))
		wantErr(t, open(t, path).Unlock(key), ca.ErrWrongUnlockKey, "changed")
	})
	t.Run("a directory", func(t *testing.T) {
		if _, err := ca.OpenKeyFile(t.TempDir()); err == nil {
			t.Error("opened")
		}
	})
}

// The unlock keys and the authority of the crash test are handed to the child in files beside the key file.
func child(what, path string) error {
	read := func(name string) string { return string(must(os.ReadFile(filepath.Join(filepath.Dir(path), name)))) }
	root := must(ca.LoadRoot([]byte(read("root")), []byte(read("root.key"))))
	f, err := ca.OpenKeyFile(path)
	if err != nil {
		return err
	}
	if f.Locked() {
		if err := f.Unlock(must(ca.ParseUnlockKey(read("unlock")))); err != nil {
			return err
		}
	}
	switch what {
	case "renew":
		err = f.Write(sign(root, manager("m1"), 0, epoch).material(trustOf(root)))
	case "lock", "relock":
		err = f.SetUnlockKey(must(ca.ParseUnlockKey(read("next"))))
	case "open":
		err = f.SetUnlockKey(ca.UnlockKey{})
	}
	if err == nil {
		fmt.Print("done")
	}
	return err
}

func TestKeyFileCrash(t *testing.T) {
	root := newRoot()
	for _, what := range []string{"renew", "lock", "relock", "open"} {
		for _, action := range []string{"kill", "error"} {
			for point, written := range map[string]bool{"ca.keyfile.sealed": false, "ca.keyfile.written": true} {
				t.Run(what+" "+point+" "+action, func(t *testing.T) {
					dir := t.TempDir()
					path := filepath.Join(dir, "node.pem")
					unlock, next := ca.NewUnlockKey(), ca.NewUnlockKey()
					for name, text := range map[string]string{
						"root": string(root.EncodeCertificates()), "root.key": string(must(root.EncodeKey())),
						"unlock": unlock.String(), "next": next.String(),
					} {
						check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
					}
					f := open(t, path)
					if what == "relock" || what == "open" {
						check(t, f.SetUnlockKey(unlock))
					}
					first := sign(root, manager("m1"), 0, epoch).material(trustOf(root))
					check(t, f.Write(first))
					before := must(os.ReadFile(path))

					out, err := runChild(t, what, path, point+"="+action)
					if err == nil || strings.Contains(out, "done") || action == "error" && !strings.Contains(out, fault.ErrInjected.Error()) {
						t.Fatalf("went through: %v, %s", err, out)
					}
					if changed := !bytes.Equal(must(os.ReadFile(path)), before); changed != written {
						t.Errorf("changed: %v", changed)
					}
					// As if it had died within the replacement: the new content, in the clear, beside the file.
					litter := filepath.Join(dir, ".tmp-node.pem-123")
					check(t, os.WriteFile(litter, before[:len(before)/2], 0o600))

					// The host starts again and is a good peer with what it has.
					f = open(t, path)
					if _, err := os.Stat(litter); err == nil {
						t.Error("litter stays")
					}
					want := ca.UnlockKey{} // the key that opens the file now
					switch {
					case what == "relock" && !written, what == "open" && !written:
						want = unlock
					case what == "relock", what == "lock" && written:
						want = next
					}
					if f.Locked() != !want.IsZero() {
						t.Fatalf("locked: %v", f.Locked())
					}
					check(t, f.Unlock(want))
					m := must(f.Held())
					if renewed := !same(m, first); renewed != (what == "renew" && written) {
						t.Errorf("renewed: %v", renewed)
					}
					own := must(ca.NewCredentials(m, at(epoch)))
					if s, c := connect(t, own.Server(ca.Want{}), own.Client(ca.Want{})); s.err != nil || c.err != nil {
						t.Error(s.err, c.err)
					}
					again := sign(root, manager("m1"), 0, epoch).material(trustOf(root))
					check(t, f.Write(again))
					f = open(t, path)
					if f.Locked() != !want.IsZero() {
						t.Error("a renewal changed whether the file is sealed")
					}
					check(t, f.Unlock(want))
					if !same(must(f.Held()), again) {
						t.Error("the next renewal is lost")
					}
				})
			}
		}
	}
}
