package ca

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// Why a peer is refused. The error around them names the node and what to do.
var (
	// ErrNoCertificate is returned for a peer that showed none.
	ErrNoCertificate = fmt.Errorf("no certificate was shown: %w", errdefs.ErrUnauthenticated)

	// ErrNotNode is returned for a certificate that does not say which node of which cluster it belongs to.
	ErrNotNode = fmt.Errorf("not a node's certificate: %w", errdefs.ErrUnauthenticated)

	// ErrExpired is returned when a certificate of the chain has ended.
	ErrExpired = fmt.Errorf("expired: %w", errdefs.ErrUnauthenticated)

	// ErrNotYetValid is returned when a certificate of the chain begins later.
	ErrNotYetValid = fmt.Errorf("not yet valid: %w", errdefs.ErrUnauthenticated)

	// ErrUnknownAuthority is returned when the chain does not lead to a trusted root.
	ErrUnknownAuthority = fmt.Errorf("unknown authority: %w", errdefs.ErrUnauthenticated)

	// ErrOtherCluster is returned when the certificate names another cluster.
	ErrOtherCluster = fmt.Errorf("other cluster: %w", errdefs.ErrUnauthenticated)

	// ErrWrongRole is returned when the peer is who it says, but has not the role that is needed.
	ErrWrongRole = fmt.Errorf("wrong role: %w", errdefs.ErrPermissionDenied)

	// ErrWrongNode is returned when the peer is another node than the one that was wanted.
	ErrWrongNode = fmt.Errorf("another node: %w", errdefs.ErrPermissionDenied)
)

// maxChain bounds the certificates that a peer may show.
const maxChain = 16

// Trust is whom a host of a cluster believes: one root, or while the cluster moves to another root, both.
type Trust struct {
	Cluster string
	roots   []*x509.Certificate
}

// NewTrust reads the roots that a host of the cluster trusts, in PEM.
func NewTrust(cluster string, roots []byte) (Trust, error) {
	certs, err := ParseCertificates(roots)
	if err != nil {
		return Trust{}, fmt.Errorf("trusted roots: %w", err)
	}
	return newTrust(cluster, certs)
}

func newTrust(cluster string, certs []*x509.Certificate) (Trust, error) {
	if err := checkName("cluster", cluster); err != nil {
		return Trust{}, fmt.Errorf("trusted roots: %w", err)
	}
	if len(certs) == 0 {
		return Trust{}, fmt.Errorf("trusted roots: there is none: %w", ErrInvalidRoot)
	}
	for _, c := range certs {
		if !c.IsCA || !selfSigned(c) {
			return Trust{}, fmt.Errorf("trusted roots: %s is not a self-signed authority: %w", c.Subject, ErrInvalidRoot)
		}
	}
	return Trust{Cluster: cluster, roots: slices.Clone(certs)}, nil
}

// Encode writes the roots in PEM: Docker's TrustRoot.
func (t Trust) Encode() []byte { return EncodeCertificates(t.roots...) }

// Want says which peers are accepted beyond those that the cluster's authority vouches for. The zero value accepts all
// of the cluster's nodes.
type Want struct {
	Role  Role                    // empty: any
	Node  string                  // empty: any
	Admit func(id Identity) error // nil: all; the place to refuse nodes that were removed from the cluster
}

// Verify checks the chain that a peer showed, its own certificate first, and returns who it is. Time is the caller's.
func (t Trust) Verify(chain []*x509.Certificate, want Want, now time.Time) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, fmt.Errorf("peer refused: %w; only hosts that have joined cluster %s are let in", ErrNoCertificate, t.Cluster)
	}
	id, err := identityOf(chain[0])
	if err != nil {
		return Identity{}, fmt.Errorf("certificate of %q refused: %w: %w", chain[0].Subject, err, ErrNotNode)
	}
	if err := t.verifyPath(chain, now); err != nil {
		return Identity{}, fmt.Errorf("certificate of node %s refused: %w", id.Node, t.explain(err, id, chain[0], now))
	}
	switch {
	case id.Cluster != t.Cluster:
		return Identity{}, fmt.Errorf("certificate of node %s refused: %w", id.Node, t.otherCluster(id))
	case want.Role != "" && id.Role != want.Role:
		return Identity{}, fmt.Errorf("node %s refused: it is a %s, and a %s is needed: %w; change its role first", id.Node, id.Role, want.Role, ErrWrongRole)
	case want.Node != "" && id.Node != want.Node:
		return Identity{}, fmt.Errorf("node %s refused: node %s was expected here: %w; check the address", id.Node, want.Node, ErrWrongNode)
	}
	if want.Admit != nil {
		if err := want.Admit(id); err != nil {
			return Identity{}, fmt.Errorf("node %s refused: %w", id.Node, err)
		}
	}
	return id, nil
}

// verifyPath looks for a way from the first certificate to a root.
func (t Trust) verifyPath(chain []*x509.Certificate, now time.Time) error {
	if len(t.roots) == 0 { // x509 would take the system's instead
		return errors.New("there is no root")
	}
	if len(chain) > maxChain {
		return fmt.Errorf("a chain of %d certificates is too long", len(chain))
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range t.roots {
		roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

// explain turns x509's error into one that says what to do. The names in it are the certificate's claims.
func (t Trust) explain(err error, id Identity, leaf *x509.Certificate, now time.Time) error {
	if err := inForce(leaf, now); errors.Is(err, ErrExpired) {
		return fmt.Errorf("%w; let it leave the cluster and join again, if the clocks are right (here it is %s)", err, now.Format(time.RFC3339))
	} else if err != nil {
		return fmt.Errorf("%w; set the clocks of both hosts (here it is %s)", err, now.Format(time.RFC3339))
	}
	if id.Cluster != t.Cluster {
		return t.otherCluster(id)
	}
	for _, root := range t.roots {
		if bytes.Equal(root.RawSubject, leaf.RawIssuer) && bytes.Equal(root.SubjectKeyId, leaf.AuthorityKeyId) {
			if err := inForce(root, now); err != nil {
				return fmt.Errorf("the root of cluster %s: %w; change the root, or set the clock (here it is %s)", t.Cluster, err, now.Format(time.RFC3339))
			}
		}
	}
	return fmt.Errorf("%w: %w; if it missed a change of the cluster's root, let it leave and join again", err, ErrUnknownAuthority)
}

func (t Trust) otherCluster(id Identity) error {
	return fmt.Errorf("it belongs to cluster %s, this is %s: %w; let it leave that cluster and join this one, or check the address", id.Cluster, t.Cluster, ErrOtherCluster)
}
