package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// Lifetimes of certificates. All begin Backdate before they are made, for hosts whose clocks are behind.
const (
	RootLife    = 20 * 365 * 24 * time.Hour
	DefaultLife = 90 * 24 * time.Hour
	MinLife     = time.Hour
	Backdate    = time.Hour
)

var (
	// ErrKeyMismatch is returned when a private key is not the one of the certificate beside it.
	ErrKeyMismatch = fmt.Errorf("the private key does not belong to the certificate: %w", errdefs.ErrInvalidArgument)

	// ErrInvalidRoot is returned for certificates that cannot be a cluster's authority.
	ErrInvalidRoot = fmt.Errorf("not usable as a root: %w", errdefs.ErrInvalidArgument)

	// ErrExternal is returned for what needs the authority's key when only an external authority has it.
	ErrExternal = fmt.Errorf("the authority's key is not in the cluster: %w", errdefs.ErrFailedPrecondition)

	// ErrInvalidRequest is returned for a signing request that is refused whatever the authority.
	ErrInvalidRequest = fmt.Errorf("invalid certificate request: %w", errdefs.ErrInvalidArgument)
)

// Root is an authority: a self-signed root, perhaps intermediates below it, and the key of the lowest, unless an
// external authority keeps that.
type Root struct {
	chain []*x509.Certificate // the one that signs, then its issuers; the last is the root
	key   crypto.Signer       // of chain[0]; nil when it is external
	cross []*x509.Certificate // while the cluster moves here from another root: the way from this root to that one
}

// NewRoot makes an authority with a new key on the curve P-256.
func NewRoot(now time.Time) (*Root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the root's key: %w", err)
	}
	cert, err := issue(&x509.Certificate{
		Subject:   pkix.Name{CommonName: authorityName},
		NotBefore: now.Add(-Backdate),
		NotAfter:  now.Add(RootLife),
		KeyUsage:  x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:      true,
	}, nil, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the root: %w", err)
	}
	return &Root{chain: []*x509.Certificate{cert}, key: key}, nil
}

// issue signs template for the key pub. Without a parent the certificate is self-signed.
func issue(template, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	template.BasicConstraintsValid = true
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// LoadRoot reads an authority that was made elsewhere. cert holds the certificate that signs, then its issuers in order;
// the last, or only, one is the self-signed root. key belongs to the first; it is empty when an external authority
// keeps it.
func LoadRoot(cert, key []byte) (*Root, error) {
	chain, err := ParseCertificates(cert)
	if err != nil {
		return nil, fmt.Errorf("load root: %w", err)
	}
	for i, c := range chain {
		name := c.Subject.String()
		if !c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
			return nil, fmt.Errorf("load root: %s may not sign certificates: %w", name, ErrInvalidRoot)
		}
		if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) &&
			!(slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)) {
			return nil, fmt.Errorf("load root: %s may not sign for both ends of a link: %w", name, ErrInvalidRoot)
		}
		if !allowsBelow(c, i) {
			return nil, fmt.Errorf("load root: %s does not allow %d authorities below it: %w", name, i, ErrInvalidRoot)
		}
		if why := weak(c.PublicKey); why != "" {
			return nil, fmt.Errorf("load root: %s: %s: %w", name, why, ErrInvalidRoot)
		}
		if i+1 < len(chain) {
			if err := c.CheckSignatureFrom(chain[i+1]); err != nil {
				return nil, fmt.Errorf("load root: %s is not signed by %s, which follows it: %w: %w", name, chain[i+1].Subject, err, ErrInvalidRoot)
			}
			if selfSigned(c) {
				return nil, fmt.Errorf("load root: %s is self-signed and is not the last certificate: %w", name, ErrInvalidRoot)
			}
		} else if !selfSigned(c) {
			return nil, fmt.Errorf("load root: %s is an intermediate; its issuers up to the self-signed root have to follow it: %w", name, ErrInvalidRoot)
		}
	}
	r := &Root{chain: chain}
	if len(bytes.TrimSpace(key)) == 0 {
		return r, nil
	}
	if r.key, err = ParseKey(key); err != nil {
		return nil, fmt.Errorf("load root's key: %w", err)
	}
	if !sameKey(r.key, chain[0].PublicKey) {
		return nil, fmt.Errorf("load root: %s: %w", chain[0].Subject, ErrKeyMismatch)
	}
	return r, nil
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// Certificate is the self-signed root that hosts trust.
func (r *Root) Certificate() *x509.Certificate { return r.chain[len(r.chain)-1] }

// Issuer is the subject and the public key, in DER, of the certificate that signs: Docker's CertIssuerSubject and
// CertIssuerPublicKey.
func (r *Root) Issuer() (subject, publicKey []byte) {
	return r.chain[0].RawSubject, r.chain[0].RawSubjectPublicKeyInfo
}

// External reports whether the key is kept by an external authority, so that Sign is refused.
func (r *Root) External() bool { return r.key == nil }

// EncodeCertificates writes the authority's certificates as LoadRoot reads them.
func (r *Root) EncodeCertificates() []byte { return EncodeCertificates(r.chain...) }

// EncodeKey writes the key as LoadRoot reads it: nothing for an external authority.
func (r *Root) EncodeKey() ([]byte, error) {
	if r.key == nil {
		return nil, nil
	}
	return EncodeKey(r.key)
}

// Digest is the SHA-256 of a root in PEM, by which join tokens name it.
type Digest [sha256.Size]byte

// DigestOf returns the digest of a root's certificate.
func DigestOf(root *x509.Certificate) Digest { return sha256.Sum256(EncodeCertificates(root)) }

// Digest is the digest of the self-signed root.
func (r *Root) Digest() Digest { return DigestOf(r.Certificate()) }

// NewRequest makes a node's key, on the curve P-256, and the request to sign it, in PEM. The request carries no name:
// who the node is, the signer knows from the token or the old certificate that came with it.
func NewRequest() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the node's key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: der}), nil
}

// parseRequest returns the public key that request asks to be signed, once the request has proved to own it.
func parseRequest(request []byte) (*ecdsa.PublicKey, error) {
	blocks, err := decode(request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrInvalidRequest)
	}
	if len(blocks) != 1 || blocks[0].Type != requestBlock {
		return nil, fmt.Errorf("a single block %q is expected, got %q: %w", requestBlock, blocks[0].Type, ErrInvalidRequest)
	}
	csr, err := x509.ParseCertificateRequest(blocks[0].Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrInvalidRequest)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("it is not signed by the key that it names: %w: %w", err, ErrInvalidRequest)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("its key is not one on the curve P-256: %w", ErrInvalidRequest)
	}
	return pub, nil
}

// Sign issues a certificate for the key in request, valid for life, 0 being DefaultLife, but not longer than the
// authority itself. What the request says about its owner is ignored. The answer is the certificate and its
// intermediates, in PEM.
func (r *Root) Sign(request []byte, id Identity, life time.Duration, now time.Time) ([]byte, error) {
	if life == 0 {
		life = DefaultLife
	}
	cert, err := r.sign(request, id, life, now)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", id.Node, err)
	}
	chain := slices.Concat([]*x509.Certificate{cert}, r.intermediates())
	if _, err := (Trust{Cluster: id.Cluster, roots: []*x509.Certificate{r.Certificate()}}).Verify(chain, Want{}, now); err != nil {
		return nil, fmt.Errorf("the authority's own certificates do not allow it: %w", err) // they limit names, say
	}
	return EncodeCertificates(chain...), nil
}

func (r *Root) sign(request []byte, id Identity, life time.Duration, now time.Time) (*x509.Certificate, error) {
	if err := id.check(); err != nil {
		return nil, err
	}
	if life < MinLife {
		return nil, fmt.Errorf("a life of %v is shorter than %v: %w", life, MinLife, errdefs.ErrInvalidArgument)
	}
	if r.key == nil {
		return nil, ErrExternal
	}
	pub, err := parseRequest(request)
	if err != nil {
		return nil, err
	}
	end := now.Add(life)
	for _, c := range slices.Concat(r.chain, r.cross) {
		if err := inForce(c, now); err != nil {
			return nil, fmt.Errorf("authority %s: %w", c.Subject, err)
		}
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return issue(&x509.Certificate{
		Subject:     id.subject(),
		DNSNames:    id.names(),
		NotBefore:   now.Add(-Backdate),
		NotAfter:    end,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, r.chain[0], pub, r.key)
}

// intermediates is what has to follow a node's certificate.
func (r *Root) intermediates() []*x509.Certificate {
	return slices.Concat(r.chain[:len(r.chain)-1], r.cross)
}

// Complete checks the certificate that an external authority issued for request: that it says id and no more, and comes
// from this authority. It returns what Sign would have.
func (r *Root) Complete(issued, request []byte, id Identity, now time.Time) ([]byte, error) {
	certs, err := ParseCertificates(issued)
	if err != nil {
		return nil, fmt.Errorf("certificate from the external authority: %w", err)
	}
	pub, err := parseRequest(request)
	if err != nil {
		return nil, fmt.Errorf("certificate from the external authority: %w", err)
	}
	if !pub.Equal(certs[0].PublicKey) {
		return nil, fmt.Errorf("certificate from the external authority: it is for another key than was asked for: %w", ErrInvalidRequest)
	}
	chain := certs[:1:1]
	for _, c := range slices.Concat(certs[1:], r.intermediates()) { // the authority may have sent some of ours along
		if !selfSigned(c) && !slices.ContainsFunc(chain, c.Equal) {
			chain = append(chain, c)
		}
	}
	got, err := Trust{Cluster: id.Cluster, roots: []*x509.Certificate{r.Certificate()}}.Verify(chain, Want{}, now)
	if err != nil {
		return nil, fmt.Errorf("certificate from the external authority: %w", err)
	}
	if got != id {
		return nil, fmt.Errorf("certificate from the external authority: it says %v where %v was asked for: %w", got, id, ErrInvalidRequest)
	}
	return EncodeCertificates(chain...), nil
}

// crossSign certifies the root of next under r, so that a host that knows only r believes what next signs.
func (r *Root) crossSign(next *Root, now time.Time) (*x509.Certificate, error) {
	if r.key == nil {
		return nil, fmt.Errorf("the new root has to be signed by the old one: %w; set the old root's key first", ErrExternal)
	}
	n := next.Certificate()
	for _, c := range slices.Concat(r.chain, next.chain) {
		if err := inForce(c, now); err != nil {
			return nil, fmt.Errorf("authority %s: %w", c.Subject, err)
		}
	}
	end := n.NotAfter
	for _, c := range r.chain {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	for i, c := range r.chain {
		if below := i + len(next.chain); !allowsBelow(c, below) {
			return nil, fmt.Errorf("the old authority %s does not allow %d others below it: %w", c.Subject, below, ErrInvalidRoot)
		}
	}
	return issue(&x509.Certificate{
		RawSubject:   n.RawSubject,
		SubjectKeyId: n.SubjectKeyId,
		// Both roots may have the same name. crypto/x509 then leaves this out, and openssl takes it for self-signed.
		AuthorityKeyId: r.chain[0].SubjectKeyId,
		NotBefore:      now.Add(-Backdate),
		NotAfter:       end,
		KeyUsage:       x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:           true,
	}, r.chain[0], n.PublicKey, r.key)
}

// allowsBelow reports whether n authorities may stand between c and a node.
func allowsBelow(c *x509.Certificate, n int) bool {
	limited := c.MaxPathLen > 0 || c.MaxPathLen == 0 && c.MaxPathLenZero
	return !limited || n <= c.MaxPathLen
}

// inForce reports whether cert counts at the time now.
func inForce(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.After(cert.NotAfter):
		return fmt.Errorf("since %s: %w", cert.NotAfter.Format(time.RFC3339), ErrExpired)
	case now.Before(cert.NotBefore):
		return fmt.Errorf("before %s: %w", cert.NotBefore.Format(time.RFC3339), ErrNotYetValid)
	}
	return nil
}
