package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Role is what a node may do in its cluster, in the words of Docker's certificates.
type Role string

// The roles. A manager may sign, propose and be asked to join; a worker runs tasks.
const (
	Manager Role = "swarm-manager"
	Worker  Role = "swarm-worker"
)

// authorityName is the subject of a root, and the name by which a manager's certificate may be addressed as one that signs.
const authorityName = "swarm-ca"

// Identity is what a certificate says about its owner.
type Identity struct {
	Cluster string // organization
	Node    string // common name
	Role    Role   // organizational unit
}

func (id Identity) String() string {
	return fmt.Sprintf("node %s (%s of cluster %s)", id.Node, id.Role, id.Cluster)
}

// ErrInvalidIdentity is returned for an identity that no certificate may carry.
var ErrInvalidIdentity = fmt.Errorf("invalid identity: %w", errdefs.ErrInvalidArgument)

// check reports what is wrong with the identity. Names are limited to what is valid in a certificate's common name and
// DNS name alike.
func (id Identity) check() error {
	if id.Role != Manager && id.Role != Worker {
		return fmt.Errorf("role %q is neither %s nor %s: %w", id.Role, Manager, Worker, ErrInvalidIdentity)
	}
	if err := checkName("cluster", id.Cluster); err != nil {
		return err
	}
	return checkName("node", id.Node)
}

func checkName(what, name string) error {
	switch {
	case name == "" || len(name) > 63:
		return fmt.Errorf("%s id %q does not have 1 to 63 characters: %w", what, name, ErrInvalidIdentity)
	case strings.ContainsFunc(name, notInName) || name[0] == '-' || name[len(name)-1] == '-':
		return fmt.Errorf("%s id %q is not made of letters, digits, '_' and inner '-': %w", what, name, ErrInvalidIdentity)
	case name == string(Manager) || name == string(Worker) || name == authorityName:
		return fmt.Errorf("%s id %q is a role's name: %w", what, name, ErrInvalidIdentity)
	}
	return nil
}

func (id Identity) subject() pkix.Name {
	return pkix.Name{CommonName: id.Node, OrganizationalUnit: []string{string(id.Role)}, Organization: []string{id.Cluster}}
}

// names are the DNS names in the certificate: a host is addressed by its role or its id, not by where it is.
func (id Identity) names() []string {
	if id.Role == Manager {
		return []string{string(id.Role), id.Node, authorityName}
	}
	return []string{string(id.Role), id.Node}
}

// identityOf reads what cert claims. The claim is worth nothing before the chain is verified.
func identityOf(cert *x509.Certificate) (Identity, error) {
	s := cert.Subject
	switch {
	case cert.IsCA:
		return Identity{}, errors.New("it is an authority's")
	case len(s.OrganizationalUnit) != 1 || len(s.Organization) != 1:
		return Identity{}, errors.New("its subject does not name one role and one cluster")
	case !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth):
		return Identity{}, errors.New("it may not be used at both ends of a link")
	}
	id := Identity{Cluster: s.Organization[0], Node: s.CommonName, Role: Role(s.OrganizationalUnit[0])}
	if err := id.check(); err != nil {
		return Identity{}, err
	}
	if !slices.Equal(slices.Sorted(slices.Values(cert.DNSNames)), slices.Sorted(slices.Values(id.names()))) || len(cert.IPAddresses)+len(cert.URIs)+len(cert.EmailAddresses) > 0 {
		return Identity{}, fmt.Errorf("its alternative names %q are not those of its subject", cert.DNSNames)
	}
	return id, nil
}

func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}
