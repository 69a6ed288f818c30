package ca_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"stated.dev/stated/cluster/ca"
)

// example is a token in the form that Docker's documentation shows.
const (
	exampleDigest = "3pu6hszjas19xyp7ghgosyx9k8atbfcr8p2is99znpy26u2lkl"
	exampleSecret = "1awxwuwd3z9j1z3puu7rcgdbx"
	example       = "SWMTKN-1-" + exampleDigest + "-" + exampleSecret
)

func TestTokenForm(t *testing.T) {
	if got := must(ca.ParseToken(example)).String(); got != example {
		t.Errorf("got %s", got)
	}
	for range 100 {
		token := ca.NewToken(newDigest())
		s := token.String()
		if len(s) != 9+50+1+25 || !must(ca.ParseToken(s)).Equal(token) {
			t.Fatalf("%s is not parsed to what it was", s)
		}
	}
	zero := ca.NewToken(ca.Digest{}).String()
	if !strings.HasPrefix(zero, "SWMTKN-1-"+strings.Repeat("0", 50)+"-") {
		t.Errorf("%s lacks leading zeros", zero)
	}
	var tokens ca.Tokens
	text := must(json.Marshal(ca.NewTokens(newDigest())))
	if err := json.Unmarshal(text, &tokens); err != nil {
		t.Fatal(err)
	}
	if string(must(json.Marshal(tokens))) != string(text) {
		t.Error("tokens do not survive JSON")
	}
}

func newDigest() (d ca.Digest) {
	key := ca.NewUnlockKey().String()
	copy(d[:], key[len("SWMKEY-1-"):])
	return d
}

func TestParseTokenRefuses(t *testing.T) {
	for name, c := range map[string]struct{ token, words string }{
		"empty":           {"", "empty"},
		"unlock key":      {ca.NewUnlockKey().String(), "unlock key"},
		"white space":     {example + "\n", "white space"},
		"something else":  {"hello", "does not begin with SWMTKN-"},
		"version":         {"SWMTKN-2-1-" + exampleDigest + "-" + exampleSecret, `version is "2"`},
		"no version":      {"SWMTKN-", `version is ""`},
		"no secret":       {"SWMTKN-1-" + exampleDigest, "before the secret"},
		"short digest":    {"SWMTKN-1-" + exampleDigest[1:] + "-" + exampleSecret, "digest has 49 characters, not 50"},
		"long secret":     {example + "0", "secret has 26 characters, not 25"},
		"cut off":         {example[:len(example)-1], "secret has 24 characters, not 25"},
		"one part more":   {example + "-x", "secret has 27 characters"},
		"upper case":      {"SWMTKN-1-" + strings.ToUpper(exampleDigest) + "-" + exampleSecret, "digest has characters other"},
		"sign":            {"SWMTKN-1-+" + exampleDigest[1:] + "-" + exampleSecret, "digest has characters other"},
		"digest too big":  {"SWMTKN-1-" + strings.Repeat("z", 50) + "-" + exampleSecret, "digest is a number of more than 256 bits"},
		"secret too big":  {"SWMTKN-1-" + exampleDigest + "-" + strings.Repeat("z", 25), "secret is a number of more than 128 bits"},
		"other alphabets": {"SWMTKN-1-" + exampleDigest[:48] + "é-" + exampleSecret, "characters other"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ca.ParseToken(c.token)
			wantErr(t, err, ca.ErrInvalidToken, c.words)
			if strings.Contains(err.Error(), exampleSecret) {
				t.Errorf("%v gives the secret away", err)
			}
		})
	}
}

func TestAdmit(t *testing.T) {
	s := newState()
	for role, token := range map[ca.Role]ca.Token{ca.Worker: s.Tokens.Worker, ca.Manager: s.Tokens.Manager} {
		if got := must(s.Tokens.Admit(token.String())); got != role {
			t.Errorf("got %s, want %s", got, role)
		}
		rotated := must(s.RotateToken(role))
		_, err := rotated.Tokens.Admit(token.String())
		wantErr(t, err, ca.ErrTokenRefused, "replaced")
		kept := s.Tokens.Worker
		if role == ca.Worker {
			kept = s.Tokens.Manager
		}
		_ = must(rotated.Tokens.Admit(kept.String()))
	}
	_, err := s.Tokens.Admit(example)
	wantErr(t, err, ca.ErrTokenRefused, "another root")
	_, err = s.Tokens.Admit("")
	wantErr(t, err, ca.ErrInvalidToken)
	_, err = s.RotateToken("king")
	if err == nil || !strings.Contains(err.Error(), "king") {
		t.Errorf("got %v", err)
	}
}

func TestTokenVerify(t *testing.T) {
	root := newRoot()
	token := ca.NewToken(root.Digest())
	m := sign(root, manager("m1"), 0, epoch)
	chain := append(m.chain(), root.Certificate())
	trust, id, err := token.Verify(chain, epoch)
	if err != nil || id != manager("m1") || trust.Cluster != cluster {
		t.Fatalf("got %v, %v", id, err)
	}
	_, _, err = token.Verify(nil, epoch)
	wantErr(t, err, ca.ErrNoCertificate)
	_, _, err = token.Verify(m.chain(), epoch)
	wantErr(t, err, ca.ErrNotPinned, "check the address")
	_, _, err = ca.NewToken(newRoot().Digest()).Verify(chain, epoch)
	wantErr(t, err, ca.ErrNotPinned)
	_, _, err = token.Verify(append(sign(root, worker("w1"), 0, epoch).chain(), root.Certificate()), epoch)
	wantErr(t, err, ca.ErrWrongRole, "node w1")
	_, _, err = token.Verify(append(sign(newRoot(), manager("m1"), 0, epoch).chain(), root.Certificate()), epoch) // the right root beside a wrong chain
	wantErr(t, err, ca.ErrUnknownAuthority)
	_, _, err = token.Verify(chain, epoch.Add(ca.DefaultLife+time.Minute))
	wantErr(t, err, ca.ErrExpired)
	_, _, err = token.Verify(chain[1:], epoch)
	wantErr(t, err, ca.ErrNotNode)
	leaf := m.chain()[0]
	_, _, err = ca.NewToken(ca.DigestOf(leaf)).Verify(m.chain(), epoch) // a token that names what is no root
	wantErr(t, err, ca.ErrInvalidRoot)
}
