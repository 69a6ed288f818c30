package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/fault"
)

// The blocks that only a key file has.
const (
	sealedBlock  = "STATED SEALED KEY"
	dataKeyBlock = "STATED DATA KEY"
)

var (
	// ErrInvalidKeyFile is returned for a key file that does not hold what it should.
	ErrInvalidKeyFile = fmt.Errorf("invalid key file: %w", errdefs.ErrDataLoss)

	// ErrNoKey is returned by KeyFile.Held before the host has joined a cluster.
	ErrNoKey = fmt.Errorf("the host has no key: %w", errdefs.ErrNotFound)

	// ErrLocked is returned for what needs the host's key before the unlock key was given.
	ErrLocked = fmt.Errorf("the host's key is locked; unlock it with the cluster's unlock key: %w", errdefs.ErrFailedPrecondition)
)

// Material is what a host holds to take part in its cluster.
type Material struct {
	Chain   []*x509.Certificate // the host's own, then its intermediates
	Key     *ecdsa.PrivateKey
	Trust   Trust
	DataKey []byte // the key under which the host seals its log, if it has one; kept as the other key is
}

// NewMaterial puts together what a host holds after its certificate was issued: the key and the request's answer.
func NewMaterial(key *ecdsa.PrivateKey, issued []byte, trust Trust) (Material, error) {
	chain, err := ParseCertificates(issued)
	if err != nil {
		return Material{}, fmt.Errorf("issued certificate: %w", err)
	}
	m := Material{Chain: chain, Key: key, Trust: trust}
	_, err = m.identity()
	return m, err
}

// Leaf is the host's own certificate.
func (m Material) Leaf() *x509.Certificate { return m.Chain[0] }

// identity checks that the parts belong together, and says whose they are. Whether the certificate has expired does
// not matter here: a host that was off for long still has to find out who it was.
func (m Material) identity() (Identity, error) {
	if len(m.Chain) == 0 || m.Key == nil {
		return Identity{}, ErrNoKey
	}
	if leaf := m.Chain[0]; !sameKey(m.Key, leaf.PublicKey) {
		return Identity{}, fmt.Errorf("certificate of %q: %w", leaf.Subject, ErrKeyMismatch)
	}
	// If the chain was ever good, it was so when the last of its certificates began.
	var first error
	for _, c := range slices.Concat(m.Chain, m.Trust.roots) {
		id, err := m.Trust.Verify(m.Chain, Want{}, c.NotBefore)
		if err == nil {
			return id, nil
		}
		if first == nil {
			first = err
		}
	}
	return Identity{}, first
}

// public is what the seal is bound to: nobody who can write to the disk of a locked host makes it trust another root.
func (m Material) public() []byte {
	return slices.Concat(EncodeCertificates(m.Chain...), []byte{0}, m.Trust.Encode())
}

// encode writes the chain, then the secrets, sealed if there is an unlock key, then the trusted roots.
func (m Material) encode(unlock UnlockKey) ([]byte, error) {
	secrets, err := EncodeKey(m.Key)
	if err != nil {
		return nil, err
	}
	if len(m.DataKey) > 0 {
		secrets = append(secrets, pem.EncodeToMemory(&pem.Block{Type: dataKeyBlock, Bytes: m.DataKey})...)
	}
	if !unlock.IsZero() {
		sealed, err := unlock.seal(secrets, m.public())
		if err != nil {
			return nil, fmt.Errorf("seal: %w", err)
		}
		secrets = pem.EncodeToMemory(&pem.Block{Type: sealedBlock, Bytes: sealed})
	}
	return slices.Concat(EncodeCertificates(m.Chain...), secrets, m.Trust.Encode()), nil
}

// parseKeyFile reads what encode wrote. Of a sealed file it returns the sealed bytes and a Material without secrets.
func parseKeyFile(data []byte) (m Material, sealed []byte, err error) {
	bad := func(err error) (Material, []byte, error) {
		return Material{}, nil, fmt.Errorf("%w: %w", err, ErrInvalidKeyFile)
	}
	blocks, err := decode(data)
	if err != nil {
		return bad(err)
	}
	isCertificate := func(b *pem.Block) bool { return b.Type == certificateBlock }
	isSecret := func(b *pem.Block) bool { return !isCertificate(b) }
	first := slices.IndexFunc(blocks, isSecret)
	if first < 0 {
		return bad(errors.New("there is no key"))
	}
	last := first + 1
	for last < len(blocks) && isSecret(blocks[last]) {
		last++
	}
	if m.Chain, err = parseBlocks(blocks[:first]); err != nil {
		return bad(err)
	}
	roots, err := parseBlocks(blocks[last:])
	if err != nil {
		return bad(err)
	}
	if len(m.Chain) == 0 {
		return bad(errors.New("there is no certificate before the key"))
	}
	id, err := identityOf(m.Chain[0])
	if err != nil {
		return bad(err)
	}
	if m.Trust, err = newTrust(id.Cluster, roots); err != nil {
		return bad(err)
	}
	if secrets := blocks[first:last]; len(secrets) == 1 && secrets[0].Type == sealedBlock {
		if err := checkSealed(secrets[0].Bytes); err != nil {
			return Material{}, nil, err
		}
		return m, secrets[0].Bytes, nil
	} else if err := m.setSecrets(secrets); err != nil {
		return bad(err)
	}
	return m, nil, nil
}

func parseBlocks(blocks []*pem.Block) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, b := range blocks {
		if b.Type != certificateBlock {
			return nil, fmt.Errorf("block %q is out of place", b.Type)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// setSecrets takes the key, and the data key if there is one, and checks that all belongs together.
func (m *Material) setSecrets(blocks []*pem.Block) error {
	key, err := parseKey(blocks[0])
	if err != nil {
		return err
	}
	var ok bool
	if m.Key, ok = key.(*ecdsa.PrivateKey); !ok {
		return fmt.Errorf("a key of type %T is not a node's", key)
	}
	switch {
	case len(blocks) == 2 && blocks[1].Type == dataKeyBlock && len(blocks[1].Bytes) > 0:
		m.DataKey = blocks[1].Bytes
	case len(blocks) != 1:
		return fmt.Errorf("block %q is out of place", blocks[1].Type)
	}
	_, err = m.identity()
	return err
}

// KeyFile is one file with a host's key, its certificate and the roots that it trusts. They are in one file, which is
// replaced whole, so that no crash leaves a key beside another key's certificate. The file's mode is 0600.
type KeyFile struct {
	path string

	mu     sync.Mutex // guards what follows; held while the file is written
	held   Material
	sealed []byte    // what waits for the unlock key; nil when not locked
	unlock UnlockKey // under which the file is sealed, once known
}

// OpenKeyFile reads the file at path, which need not be there yet. A file that is sealed is locked until Unlock. What a
// crash left beside it is removed: it may hold a key in the clear. The directory must be there, and the caller must
// have it to itself.
func OpenKeyFile(path string) (*KeyFile, error) {
	litter, err := filepath.Glob(filepath.Join(escapeGlob(filepath.Dir(path)), ".tmp-"+escapeGlob(filepath.Base(path))+"-*"))
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	for _, name := range litter {
		if err := os.Remove(name); err != nil {
			return nil, fmt.Errorf("key file %s: %w", path, err)
		}
	}
	f := &KeyFile{path: path}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	} else if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if f.held, f.sealed, err = parseKeyFile(data); err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return f, nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// Locked reports whether the key is there but waits for Unlock.
func (f *KeyFile) Locked() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sealed != nil
}

// Held returns what the file holds: ErrNoKey before the first Write, ErrLocked before Unlock.
func (f *KeyFile) Held() (Material, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.sealed != nil:
		return Material{}, fmt.Errorf("key file %s: %w", f.path, ErrLocked)
	case f.held.Key == nil:
		return Material{}, fmt.Errorf("key file %s: %w", f.path, ErrNoKey)
	}
	return f.held, nil
}

// Identity says who the host is; it can be asked of a locked file too, but is then only what the file says.
func (f *KeyFile) Identity() (Identity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.held.Chain) == 0 {
		return Identity{}, fmt.Errorf("key file %s: %w", f.path, ErrNoKey)
	}
	return identityOf(f.held.Chain[0])
}

// Unlock opens a locked file. It writes nothing. A wrong key changes nothing; of a file that is not locked the key is
// only compared.
func (f *KeyFile) Unlock(key UnlockKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.sealed == nil && f.unlock.Equal(key):
		return nil
	case f.sealed == nil && f.unlock.IsZero():
		return fmt.Errorf("unlock %s: it is not locked: %w", f.path, errdefs.ErrFailedPrecondition)
	case f.sealed == nil || key.IsZero():
		return fmt.Errorf("unlock %s: %w", f.path, ErrWrongUnlockKey)
	}
	plain, err := key.open(f.sealed, f.held.public())
	if err != nil {
		return fmt.Errorf("unlock %s: %w", f.path, err)
	}
	blocks, err := decode(plain)
	if err != nil {
		return fmt.Errorf("unlock %s: %w: %w", f.path, err, ErrInvalidKeyFile)
	}
	m := f.held
	if err := m.setSecrets(blocks); err != nil {
		return fmt.Errorf("unlock %s: %w: %w", f.path, err, ErrInvalidKeyFile)
	}
	f.held, f.sealed, f.unlock = m, nil, key
	return nil
}

// Write replaces what the file holds, and returns when that is on disk: sealed if there is an unlock key. After a crash,
// or an error of the disk, the file has the old content or the new one. The host stays the same node of the same
// cluster.
func (f *KeyFile) Write(m Material) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sealed != nil {
		return fmt.Errorf("write key file %s: %w", f.path, ErrLocked)
	}
	if err := follows(f.held, m); err != nil {
		return fmt.Errorf("write key file %s: %w", f.path, err)
	}
	return f.replaceLocked(m, f.unlock)
}

// SetUnlockKey seals the file under a new key, or with none writes it in the clear, and returns when that is on disk.
// After a crash, or an error of the disk, the file opens with the old key or the new one.
func (f *KeyFile) SetUnlockKey(key UnlockKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.sealed != nil:
		return fmt.Errorf("change unlock key of %s: %w", f.path, ErrLocked)
	case f.held.Key == nil:
		f.unlock = key // the first Write seals
		return nil
	}
	return f.replaceLocked(f.held, key)
}

func (f *KeyFile) replaceLocked(m Material, unlock UnlockKey) error {
	m.Chain, m.DataKey = slices.Clone(m.Chain), bytes.Clone(m.DataKey)
	data, err := m.encode(unlock)
	if err != nil {
		return fmt.Errorf("write key file %s: %w", f.path, err)
	}
	if err := fault.Point("ca.keyfile.sealed"); err != nil {
		return err
	}
	if err := atomicfile.Write(f.path, data, 0o600); err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	f.held, f.unlock = m, unlock
	return fault.Point("ca.keyfile.written")
}

// follows reports whether next may take the place of old: it is complete, and the same node's.
func follows(old, next Material) error {
	id, err := next.identity()
	if err != nil {
		return err
	}
	if len(old.Chain) == 0 {
		return nil
	}
	was, err := identityOf(old.Chain[0])
	if err != nil {
		return err
	}
	if was.Node != id.Node || was.Cluster != id.Cluster {
		return fmt.Errorf("this host is %v, the certificate is for %v: %w", was, id, errdefs.ErrFailedPrecondition)
	}
	return nil
}
