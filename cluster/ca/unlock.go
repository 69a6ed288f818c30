package ca

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/crypto/chacha20poly1305"
)

// The form of an unlock key is Docker's: SWMKEY-1- and 32 random bytes in base 64 without padding.
const (
	unlockPrefix  = "SWMKEY-"
	unlockVersion = "1"
	unlockDigits  = 43
)

var (
	// ErrInvalidUnlockKey is returned for text that is no unlock key.
	ErrInvalidUnlockKey = fmt.Errorf("invalid unlock key: %w", errdefs.ErrInvalidArgument)

	// ErrWrongUnlockKey is returned when what was sealed does not open with the key. Nothing has changed then.
	ErrWrongUnlockKey = fmt.Errorf("wrong unlock key: %w", errdefs.ErrPermissionDenied)
)

// UnlockKey is the key under which hosts seal their own keys. The zero value is none.
type UnlockKey struct {
	secret [chacha20poly1305.KeySize]byte
	set    bool
}

// NewUnlockKey returns a new random key.
func NewUnlockKey() UnlockKey {
	k := UnlockKey{set: true}
	rand.Read(k.secret[:])
	return k
}

// ParseUnlockKey reads a key as a user types it. White space around it is ignored. The error does not repeat the key.
func ParseUnlockKey(s string) (UnlockKey, error) {
	bad := func(format string, args ...any) (UnlockKey, error) {
		return UnlockKey{}, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrInvalidUnlockKey)
	}
	s = strings.TrimSpace(s)
	rest, ok := strings.CutPrefix(s, unlockPrefix)
	switch {
	case s == "":
		return bad("it is empty")
	case strings.HasPrefix(s, tokenPrefix):
		return bad("this is a join token")
	case !ok:
		return bad("it does not begin with %s", unlockPrefix)
	}
	version, digits, ok := strings.Cut(rest, "-")
	switch {
	case !ok || version != unlockVersion:
		return bad("its version is %.8q, this release knows %s", version, unlockVersion)
	case len(digits) != unlockDigits:
		return bad("it has %d characters after the version, not %d", len(digits), unlockDigits)
	}
	k := UnlockKey{set: true}
	if strings.ContainsAny(digits, "\r\n") { // which the decoder would pass over
		return bad("there is white space in it")
	}
	n, err := base64.RawStdEncoding.Strict().Decode(k.secret[:], []byte(digits))
	if err != nil || n != len(k.secret) {
		return bad("it is not base 64")
	}
	return k, nil
}

// String is the key as a user sees and types it, or empty for none.
func (k UnlockKey) String() string {
	if !k.set {
		return ""
	}
	return unlockPrefix + unlockVersion + "-" + base64.RawStdEncoding.EncodeToString(k.secret[:])
}

// IsZero reports whether there is no key.
func (k UnlockKey) IsZero() bool { return !k.set }

// Equal compares in a time that does not depend on where the keys differ.
func (k UnlockKey) Equal(other UnlockKey) bool {
	return k.set == other.set && subtle.ConstantTimeCompare(k.secret[:], other.secret[:]) == 1
}

// What is sealed begins with a header: four letters and the version of the form.
const sealHeader = "stky\x01"

// seal encrypts plain under k: the header, a nonce of 24 bytes, XChaCha20-Poly1305. It opens only with the same header
// and beside the same public bytes.
func (k UnlockKey) seal(plain, public []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(k.secret[:])
	if err != nil {
		return nil, err
	}
	var nonce [chacha20poly1305.NonceSizeX]byte
	rand.Read(nonce[:])
	out := append([]byte(sealHeader), nonce[:]...)
	return aead.Seal(out, nonce[:], plain, append([]byte(sealHeader), public...)), nil
}

// checkSealed reports whether this release knows the form of what is sealed.
func checkSealed(sealed []byte) error {
	n := len(sealHeader)
	switch {
	case len(sealed) < n+chacha20poly1305.NonceSizeX+chacha20poly1305.Overhead || string(sealed[:n-1]) != sealHeader[:n-1]:
		return fmt.Errorf("the sealed key is damaged: %w", ErrInvalidKeyFile)
	case sealed[n-1] != sealHeader[n-1]:
		return fmt.Errorf("the sealed key is of version %d, this release knows %d: %w", sealed[n-1], sealHeader[n-1], ErrInvalidKeyFile)
	}
	return nil
}

func (k UnlockKey) open(sealed, public []byte) ([]byte, error) {
	if err := checkSealed(sealed); err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(k.secret[:])
	if err != nil {
		return nil, err
	}
	nonce, text := sealed[len(sealHeader):][:chacha20poly1305.NonceSizeX], sealed[len(sealHeader)+chacha20poly1305.NonceSizeX:]
	plain, err := aead.Open(nil, nonce, text, append([]byte(sealHeader), public...))
	if err != nil {
		return nil, fmt.Errorf("the file was sealed under another key, or was changed since: %w", ErrWrongUnlockKey)
	}
	return plain, nil
}
