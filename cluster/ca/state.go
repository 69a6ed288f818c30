package ca

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// ErrNotMoved is returned by Finish while a node has no certificate of the new root.
var ErrNotMoved = fmt.Errorf("not all nodes have a certificate of the new root: %w", errdefs.ErrFailedPrecondition)

// State is a cluster's authority as its replicated object holds it. Its methods return a changed copy, which the caller
// proposes; they keep no reference to what they were called on.
//
// The cluster moves to another root in steps, and no link breaks on the way:
//
//  1. Rotate adds the new root, signed by the old one as well. From now on Signer is the new root, and Trust is both.
//  2. Each host takes the new Trust and renews its certificate. Its chain leads to both roots, so the order does not
//     matter, and a host that has heard of nothing yet still accepts the others.
//  3. Moved notes each node that was seen with its new certificate.
//  4. Finish makes the new root the only one, once all nodes have moved, and replaces the join tokens, which name the
//     root.
type State struct {
	Cluster  string
	Cert     string    // the root, after its intermediates, in PEM
	Key      string    `json:",omitempty"` // in PEM; empty when an external authority keeps it
	Rotation *Rotation `json:",omitempty"` // nil when no change of the root is under way
	Tokens   Tokens
}

// Rotation is a change of the root that is under way.
type Rotation struct {
	Cert        string   // the new root
	Key         string   `json:",omitempty"`
	CrossSigned string   // the new root, signed by the old one, and the old one's intermediates
	Moved       []string // the nodes that have a certificate of the new root, sorted
}

// NewState is the authority of a new cluster.
func NewState(cluster string, root *Root) (State, error) {
	if err := checkName("cluster", cluster); err != nil {
		return State{}, err
	}
	key, err := root.EncodeKey()
	if err != nil {
		return State{}, err
	}
	return State{Cluster: cluster, Cert: string(root.EncodeCertificates()), Key: string(key), Tokens: NewTokens(root.Digest())}, nil
}

// Root is the root that counts: the old one while a rotation is under way.
func (s State) Root() (*Root, error) {
	root, err := LoadRoot([]byte(s.Cert), []byte(s.Key))
	if err != nil {
		return nil, fmt.Errorf("authority of cluster %s: %w", s.Cluster, err)
	}
	return root, nil
}

// Signer is the authority that signs certificates now: the new one while a rotation is under way. What it signs is
// believed under the old root too.
func (s State) Signer() (*Root, error) {
	if s.Rotation == nil {
		return s.Root()
	}
	root, err := LoadRoot([]byte(s.Rotation.Cert), []byte(s.Rotation.Key))
	if err != nil {
		return nil, fmt.Errorf("next authority of cluster %s: %w", s.Cluster, err)
	}
	if root.cross, err = ParseCertificates([]byte(s.Rotation.CrossSigned)); err != nil {
		return nil, fmt.Errorf("next authority of cluster %s: %w", s.Cluster, err)
	}
	return root, nil
}

// Trust is whom the hosts of the cluster believe.
func (s State) Trust() (Trust, error) {
	root, err := s.Root()
	if err != nil {
		return Trust{}, err
	}
	roots := []*x509.Certificate{root.Certificate()}
	if s.Rotation != nil {
		next, err := s.Signer()
		if err != nil {
			return Trust{}, err
		}
		roots = append(roots, next.Certificate())
	}
	return newTrust(s.Cluster, roots)
}

// Rotate begins to move the cluster to another root, which may be an external authority's. When a rotation is under way
// it is given up for the new one; nodes that had moved have to move again, and are believed meanwhile.
//
// With the root that counts now, a rotation under way is given up, and the key and intermediates of next are taken at
// once. With the root that the cluster is moving to already, only those are taken and the move goes on.
//
// An external authority has to be given its key before the cluster can leave it: ErrExternal.
func (s State) Rotate(next *Root, now time.Time) (State, error) {
	fail := func(err error) (State, error) {
		return State{}, fmt.Errorf("rotate the root of cluster %s: %w", s.Cluster, err)
	}
	old, err := s.Root()
	if err != nil {
		return fail(err)
	}
	key, err := next.EncodeKey()
	if err != nil {
		return fail(err)
	}
	cert := string(next.EncodeCertificates())
	if next.Certificate().Equal(old.Certificate()) {
		s.Cert, s.Key, s.Rotation = cert, string(key), nil
		return s, nil
	}
	if s.Rotation != nil {
		under, err := s.Signer()
		if err != nil {
			return fail(err)
		}
		if next.Certificate().Equal(under.Certificate()) {
			s.Rotation = &Rotation{Cert: cert, Key: string(key), CrossSigned: s.Rotation.CrossSigned, Moved: slices.Clone(s.Rotation.Moved)}
			return s, nil
		}
	}
	cross, err := old.crossSign(next, now)
	if err != nil {
		return fail(err)
	}
	way := append([]*x509.Certificate{cross}, old.chain[:len(old.chain)-1]...)
	s.Rotation = &Rotation{Cert: cert, Key: string(key), CrossSigned: string(EncodeCertificates(way...))}
	return s, nil
}

// Moved notes the node whose chain was seen on a link: a certificate that it shows is one that it has on its disk, which
// cannot be said of one that was issued to it. It is an error if the certificate is not of the new root; without a
// rotation nothing is noted.
func (s State) Moved(chain []*x509.Certificate, now time.Time) (State, error) {
	if s.Rotation == nil {
		return s, nil
	}
	next, err := s.Signer()
	if err != nil {
		return State{}, err
	}
	id, err := Trust{Cluster: s.Cluster, roots: []*x509.Certificate{next.Certificate()}}.Verify(chain, Want{}, now)
	if err != nil {
		return State{}, fmt.Errorf("has not moved to the new root: %w", err)
	}
	moved := slices.Clone(s.Rotation.Moved)
	if i, found := slices.BinarySearch(moved, id.Node); !found {
		moved = slices.Insert(moved, i, id.Node)
	}
	r := *s.Rotation
	r.Moved = moved
	s.Rotation = &r
	return s, nil
}

// Waiting returns those of the cluster's nodes that have not moved yet.
func (s State) Waiting(nodes []string) []string {
	if s.Rotation == nil {
		return nil
	}
	var waiting []string
	for _, n := range nodes {
		if _, found := slices.BinarySearch(s.Rotation.Moved, n); !found {
			waiting = append(waiting, n)
		}
	}
	return waiting
}

// Finish ends the rotation when all of the cluster's nodes, which the caller names, have moved: the new root is the only
// one, and the join tokens are new. A node that never comes back has to be removed from the cluster first.
func (s State) Finish(nodes []string) (State, error) {
	switch waiting := s.Waiting(nodes); {
	case s.Rotation == nil:
		return State{}, fmt.Errorf("finish the rotation of cluster %s: none is under way: %w", s.Cluster, errdefs.ErrFailedPrecondition)
	case len(nodes) == 0:
		return State{}, fmt.Errorf("finish the rotation of cluster %s: no node was named: %w", s.Cluster, errdefs.ErrInvalidArgument)
	case len(waiting) > 0:
		return State{}, fmt.Errorf("finish the rotation of cluster %s: %w: %s", s.Cluster, ErrNotMoved, strings.Join(waiting, ", "))
	}
	next, err := s.Signer()
	if err != nil {
		return State{}, err
	}
	return State{Cluster: s.Cluster, Cert: s.Rotation.Cert, Key: s.Rotation.Key, Tokens: NewTokens(next.Digest())}, nil
}

// RotateToken replaces the join token of a role.
func (s State) RotateToken(role Role) (State, error) {
	switch role {
	case Manager:
		s.Tokens.Manager = NewToken(s.Tokens.Manager.root)
	case Worker:
		s.Tokens.Worker = NewToken(s.Tokens.Worker.root)
	default:
		return State{}, fmt.Errorf("there is no join token for role %q: %w", role, errdefs.ErrInvalidArgument)
	}
	return s, nil
}
