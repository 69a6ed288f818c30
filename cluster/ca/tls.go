package ca

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// Credentials are what a host shows to others and believes of them. The configurations made from them look here at each
// handshake, so that a renewal or a change of the root needs no restart of a listener. Links that stand are not
// touched: Peer asked again says whether it still holds.
type Credentials struct {
	now  func() time.Time
	held atomic.Pointer[shown]
}

// shown is one generation of the credentials.
type shown struct {
	Material
	cert tls.Certificate // for links between hosts
	join tls.Certificate // the same with the trusted roots behind it, among which a stranger looks for the one it knows
}

// NewCredentials checks that the material belongs together. The clock decides which certificates are in force.
func NewCredentials(m Material, now func() time.Time) (*Credentials, error) {
	c := &Credentials{now: now}
	if err := c.Replace(m); err != nil {
		return nil, err
	}
	return c, nil
}

// Replace changes what the next handshakes show and trust. The node stays the same; its role may change.
func (c *Credentials) Replace(m Material) error {
	var old Material
	held := c.held.Load()
	if held != nil {
		old = held.Material
	}
	if err := follows(old, m); err != nil {
		return fmt.Errorf("replace credentials: %w", err)
	}
	s := &shown{Material: m, cert: tls.Certificate{PrivateKey: m.Key, Leaf: m.Chain[0]}}
	for _, cert := range m.Chain {
		s.cert.Certificate = append(s.cert.Certificate, cert.Raw)
	}
	s.join = s.cert
	s.join.Certificate = slices.Clone(s.cert.Certificate)
	for _, root := range m.Trust.roots {
		s.join.Certificate = append(s.join.Certificate, root.Raw)
	}
	if !c.held.CompareAndSwap(held, s) {
		return fmt.Errorf("replace credentials: they were replaced meanwhile: %w", errdefs.ErrAborted)
	}
	return nil
}

// Held returns what is shown and trusted now.
func (c *Credentials) Held() Material { return c.held.Load().Material }

// Server is the configuration of a listener for other hosts of the cluster. The handshake fails, before a byte of the
// application has passed, for a peer that shows no certificate or one that is not wanted.
//
// The caller may set NextProtos, and must leave the rest alone.
func (c *Credentials) Server(want Want) *tls.Config {
	config := c.config(want)
	config.ClientAuth = tls.RequireAnyClientCert // and VerifyConnection judges it
	config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.held.Load().cert, nil }
	return config
}

// Client is the configuration of a connection to another host of the cluster.
//
// A client has finished its handshake before the server has judged its certificate: an answer, not a write that
// succeeded, says that the server took it.
func (c *Credentials) Client(want Want) *tls.Config {
	config := c.config(want)
	config.InsecureSkipVerify = true // of names and system roots; VerifyConnection judges the chain
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.held.Load().cert, nil }
	return config
}

// config has the chain judged by Trust.Verify rather than by crypto/tls, whose errors neither name the node nor say what
// to do, and whose client takes its roots only once. It is asked at each handshake; none is shortened by a ticket.
func (c *Credentials) config(want Want) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Time:                   c.now,
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := c.verify(s, want)
			return err
		},
	}
}

func (c *Credentials) verify(s tls.ConnectionState, want Want) (Identity, error) {
	return c.held.Load().Trust.Verify(s.PeerCertificates, want, c.now())
}

// JoinServer is the configuration of a listener where hosts join. A stranger has no certificate yet and is let through the
// handshake: the caller must do nothing for it before Tokens.Admit took its token. One who shows a certificate must
// have a good one.
func (c *Credentials) JoinServer() *tls.Config {
	config := c.config(Want{})
	verify := config.VerifyConnection
	config.ClientAuth = tls.RequestClientCert
	config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.held.Load().join, nil }
	config.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return nil
		}
		return verify(s)
	}
	return config
}

// errHandshake is returned by Peer and Token.Peer before the peer has proved to own its certificate.
var errHandshake = errors.New("the handshake has not been completed")

// Peer says who is at the other end of a connection whose handshake is complete. It verifies the chain anew, so that it
// also says whether a connection that stands for long would still be accepted.
func (c *Credentials) Peer(s tls.ConnectionState, want Want) (Identity, error) {
	if !s.HandshakeComplete {
		return Identity{}, fmt.Errorf("peer: %w", errHandshake)
	}
	return c.verify(s, want)
}

// Client is the configuration with which a stranger connects to a cluster's JoinServer: the handshake succeeds only with a
// manager under the root that the token names, so the token may be sent over the connection.
func (t Token) Client(now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Time:               now,
		InsecureSkipVerify: true, // of names and system roots; VerifyConnection judges the chain
		VerifyConnection: func(s tls.ConnectionState) error {
			_, _, err := t.Verify(s.PeerCertificates, now())
			return err
		},
	}
}

// Peer says which manager of which cluster is at the other end of a connection made with Client, and whom to trust from
// now on.
func (t Token) Peer(s tls.ConnectionState, now time.Time) (Trust, Identity, error) {
	if !s.HandshakeComplete {
		return Trust{}, Identity{}, fmt.Errorf("peer: %w", errHandshake)
	}
	return t.Verify(s.PeerCertificates, now)
}
