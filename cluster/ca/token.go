package ca

import (
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/internal/ids"
)

// The form of a join token is Docker's: SWMTKN-1-, the digest of the root in base 36, '-', the secret in base 36.
const (
	tokenPrefix  = "SWMTKN-"
	tokenVersion = "1"
	digestDigits = 50 // hold 256 bits
	secretDigits = 25 // hold 128 bits
	secretSize   = 16
)

var (
	// ErrInvalidToken is returned for text that is no join token.
	ErrInvalidToken = fmt.Errorf("invalid join token: %w", errdefs.ErrInvalidArgument)

	// ErrTokenRefused is returned for a token that is not, or no longer, one of the cluster's.
	ErrTokenRefused = fmt.Errorf("join token refused: %w", errdefs.ErrPermissionDenied)

	// ErrNotPinned is returned when a server does not have the root that the token names.
	ErrNotPinned = fmt.Errorf("the join token names another root: %w", errdefs.ErrUnauthenticated)
)

// Token lets a host join a cluster. It names the cluster's root, so that the host knows whom it talks to, and holds a
// secret, so that the cluster knows that the host may join.
type Token struct {
	root   Digest
	secret [secretSize]byte
}

// NewToken returns a token for the root with a new secret. To rotate a token is to replace it by a new one.
func NewToken(root Digest) Token {
	t := Token{root: root}
	rand.Read(t.secret[:])
	return t
}

// ParseToken reads a token. The error says what is wrong with it, and does not repeat the secret.
func ParseToken(s string) (Token, error) {
	bad := func(format string, args ...any) (Token, error) {
		return Token{}, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrInvalidToken)
	}
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	switch {
	case s == "":
		return bad("it is empty")
	case strings.HasPrefix(s, unlockPrefix):
		return bad("this is an unlock key")
	case strings.TrimSpace(s) != s:
		return bad("there is white space around it")
	case !ok:
		return bad("it does not begin with %s", tokenPrefix)
	}
	version, rest, ok := strings.Cut(rest, "-")
	if !ok || version != tokenVersion {
		return bad("its version is %.8q, this release knows %s", version, tokenVersion)
	}
	digest, secret, ok := strings.Cut(rest, "-")
	if !ok {
		return bad("it ends before the secret")
	}
	var t Token
	if err := fromBase36(t.root[:], digest, digestDigits); err != nil {
		return bad("the root's digest %v", err)
	}
	if err := fromBase36(t.secret[:], secret, secretDigits); err != nil {
		return bad("the secret %v", err)
	}
	return t, nil
}

// String is the token as a user sees and types it, secret included.
func (t Token) String() string {
	return tokenPrefix + tokenVersion + "-" + ids.Base36(t.root[:], digestDigits) + "-" + ids.Base36(t.secret[:], secretDigits)
}

// MarshalText is String.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is ParseToken.
func (t *Token) UnmarshalText(text []byte) (err error) {
	*t, err = ParseToken(string(text))
	return err
}

// Root is the digest of the root that the token names.
func (t Token) Root() Digest { return t.root }

// Equal compares in a time that does not depend on where the tokens differ.
func (t Token) Equal(other Token) bool {
	return subtle.ConstantTimeCompare(t.root[:], other.root[:])&subtle.ConstantTimeCompare(t.secret[:], other.secret[:]) == 1
}

// Verify checks the chain of a server that is to be joined: a manager's certificate under the very root that the token
// names. Only then may the server be shown the token. It returns whom to trust from then on.
func (t Token) Verify(chain []*x509.Certificate, now time.Time) (Trust, Identity, error) {
	if len(chain) == 0 {
		return Trust{}, Identity{}, fmt.Errorf("server refused: %w", ErrNoCertificate)
	}
	for _, c := range chain {
		if DigestOf(c) != t.root {
			continue
		}
		id, err := identityOf(chain[0])
		if err != nil {
			return Trust{}, Identity{}, fmt.Errorf("certificate of server %q refused: %w: %w", chain[0].Subject, err, ErrNotNode)
		}
		trust, err := newTrust(id.Cluster, []*x509.Certificate{c})
		if err != nil {
			return Trust{}, Identity{}, err
		}
		if id, err = trust.Verify(chain, Want{Role: Manager}, now); err != nil {
			return Trust{}, Identity{}, err
		}
		return trust, id, nil
	}
	return Trust{}, Identity{}, fmt.Errorf("server refused: none of its %d certificates has the digest in the token: %w; get a new token from a manager and check the address", len(chain), ErrNotPinned)
}

// Tokens are a cluster's two join tokens.
type Tokens struct{ Worker, Manager Token }

// NewTokens returns tokens with new secrets.
func NewTokens(root Digest) Tokens {
	return Tokens{Worker: NewToken(root), Manager: NewToken(root)}
}

// Admit says in which role the bearer of a token may join.
func (t Tokens) Admit(token string) (Role, error) {
	shown, err := ParseToken(token)
	if err != nil {
		return "", err
	}
	worker, manager := t.Worker.Equal(shown), t.Manager.Equal(shown) // both, whichever fits
	switch {
	case manager:
		return Manager, nil
	case worker:
		return Worker, nil
	case shown.root != t.Worker.root:
		return "", fmt.Errorf("it was made for another root; get the current one from a manager: %w", ErrTokenRefused)
	}
	return "", fmt.Errorf("it was replaced, or never valid; get the current one from a manager: %w", ErrTokenRefused)
}

// fromBase36 fills b from exactly that many digits. Its errors are sentences whose subject is the caller's.
func fromBase36(b []byte, s string, digits int) error {
	if len(s) != digits {
		return fmt.Errorf("has %d characters, not %d", len(s), digits)
	}
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'a' || r > 'z') {
			return errors.New("has characters other than 0-9 and a-z")
		}
	}
	n, ok := new(big.Int).SetString(s, 36)
	if !ok || n.BitLen() > 8*len(b) {
		return fmt.Errorf("is a number of more than %d bits", 8*len(b))
	}
	n.FillBytes(b)
	return nil
}
