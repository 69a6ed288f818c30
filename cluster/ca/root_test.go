package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/cluster/ca"
)

// authority is one that was made elsewhere.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func ecKey(curve elliptic.Curve) crypto.Signer { return must(ecdsa.GenerateKey(curve, rand.Reader)) }

func makeAuthority(name string, key crypto.Signer, parent *authority, change func(*x509.Certificate)) authority {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.Add(1000 * time.Hour),
	}
	if change != nil {
		change(template)
	}
	above, signer := template, key
	if parent != nil {
		above, signer = parent.cert, parent.key
	}
	der := must(x509.CreateCertificate(rand.Reader, template, above, key.Public(), signer))
	return authority{must(x509.ParseCertificate(der)), key}
}

func (a authority) pem() []byte { return ca.EncodeCertificates(a.cert) }

func (a authority) keyPEM() []byte { return must(ca.EncodeKey(a.key)) }

func TestNewRoot(t *testing.T) {
	root := must(ca.NewRoot(epoch))
	cert := root.Certificate()
	if cert.Subject.CommonName != "swarm-ca" || !cert.IsCA || cert.PublicKey.(*ecdsa.PublicKey).Curve != elliptic.P256() {
		t.Errorf("root is %v", cert.Subject)
	}
	if got := cert.NotAfter.Sub(epoch); got != 20*365*24*time.Hour {
		t.Errorf("root lives %v", got)
	}
	if !cert.NotBefore.Equal(epoch.Add(-time.Hour)) {
		t.Errorf("root begins %v", cert.NotBefore)
	}
	if root.Digest() != sha256.Sum256(root.EncodeCertificates()) {
		t.Error("the digest is not that of the PEM")
	}
	again := must(ca.LoadRoot(root.EncodeCertificates(), must(root.EncodeKey())))
	if !again.Certificate().Equal(cert) || again.External() {
		t.Error("the root does not survive encoding")
	}
	subject, key := again.Issuer()
	if !bytes.Equal(subject, cert.RawSubject) || !bytes.Equal(key, cert.RawSubjectPublicKeyInfo) {
		t.Error("issuer")
	}
	external := must(ca.LoadRoot(root.EncodeCertificates(), nil))
	if !external.External() || must(external.EncodeKey()) != nil {
		t.Error("without a key it is not external")
	}
}

func TestLoadRootForms(t *testing.T) {
	for name, key := range map[string]crypto.Signer{
		"P-256": ecKey(elliptic.P256()), "P-384": ecKey(elliptic.P384()),
		"RSA": must(rsa.GenerateKey(rand.Reader, 2048)), "Ed25519": ed25519.NewKeyFromSeed(make([]byte, 32)),
	} {
		t.Run(name, func(t *testing.T) {
			top := makeAuthority("top", key, nil, nil)
			mid := makeAuthority("mid", ecKey(elliptic.P256()), &top, nil)
			root := must(ca.LoadRoot(slices.Concat([]byte("Certificate:\n  some text\n"), mid.pem(), top.pem()), mid.keyPEM()))
			if !root.Certificate().Equal(top.cert) {
				t.Error("the root is not the last one")
			}
			n := sign(root, worker("n1"), 0, epoch)
			if got := must(trustOf(root).Verify(n.chain(), ca.Want{}, epoch)); got != worker("n1") {
				t.Errorf("got %v", got)
			}
			if len(n.chain()) != 2 {
				t.Errorf("chain of %d", len(n.chain()))
			}
			_ = must(ca.LoadRoot(top.pem(), top.keyPEM()))
		})
	}
	t.Run("old forms of keys", func(t *testing.T) {
		ec := ecKey(elliptic.P256()).(*ecdsa.PrivateKey)
		top := makeAuthority("top", ec, nil, nil)
		text := slices.Concat(
			pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}}),
			pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(ec))}))
		_ = must(ca.LoadRoot(top.pem(), text))
		r := must(rsa.GenerateKey(rand.Reader, 2048))
		top = makeAuthority("top", r, nil, nil)
		_ = must(ca.LoadRoot(top.pem(), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(r)})))
	})
}

func TestLoadRootRefuses(t *testing.T) {
	key := ecKey(elliptic.P256())
	top := makeAuthority("top", key, nil, nil)
	other := makeAuthority("other", ecKey(elliptic.P256()), nil, nil)
	mid := makeAuthority("mid", ecKey(elliptic.P256()), &top, nil)
	narrow := makeAuthority("top", key, nil, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	leaf := makeAuthority("leaf", key, nil, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
	oneWay := makeAuthority("one way", key, nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	t.Setenv("GODEBUG", "rsa1024min=0")
	small := makeAuthority("small", must(rsa.GenerateKey(rand.Reader, 1024)), nil, nil)
	curve := makeAuthority("curve", ecKey(elliptic.P224()), nil, nil)
	for name, c := range map[string]struct {
		cert, key []byte
		kind      error
		words     string
	}{
		"empty":               {nil, nil, ca.ErrInvalidPEM, "no PEM block"},
		"text":                {[]byte("hello"), nil, ca.ErrInvalidPEM, "no PEM block"},
		"cut off":             {top.pem()[:100], nil, ca.ErrInvalidPEM, "1 of 1 PEM blocks are damaged"},
		"damaged among good":  {slices.Concat(bytes.Replace(top.pem(), []byte("\nM"), []byte("\n!"), 1), other.pem()), nil, ca.ErrInvalidPEM, "1 of 2"},
		"a key":               {top.keyPEM(), nil, ca.ErrInvalidPEM, `"PRIVATE KEY", not a certificate`},
		"not DER":             {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}), nil, ca.ErrInvalidPEM, "certificate 1"},
		"not an authority":    {leaf.pem(), nil, ca.ErrInvalidRoot, "CN=leaf may not sign"},
		"for one end":         {oneWay.pem(), nil, ca.ErrInvalidRoot, "both ends"},
		"intermediate alone":  {mid.pem(), nil, ca.ErrInvalidRoot, "CN=mid is an intermediate"},
		"wrong order":         {slices.Concat(top.pem(), mid.pem()), nil, ca.ErrInvalidRoot, "CN=top is not signed by CN=mid"},
		"unrelated":           {slices.Concat(mid.pem(), other.pem()), nil, ca.ErrInvalidRoot, "CN=mid is not signed by CN=other"},
		"root twice":          {slices.Concat(top.pem(), top.pem()), nil, ca.ErrInvalidRoot, "not the last"},
		"no room below":       {slices.Concat(mid.pem(), narrow.pem()), nil, ca.ErrInvalidRoot, "CN=top does not allow 1"},
		"short RSA":           {small.pem(), nil, ca.ErrInvalidRoot, "1024 bits is too short"},
		"small curve":         {curve.pem(), nil, ca.ErrInvalidRoot, "224 bits is too small"},
		"other's key":         {top.pem(), other.keyPEM(), ca.ErrKeyMismatch, "CN=top"},
		"the root's key":      {slices.Concat(mid.pem(), top.pem()), top.keyPEM(), ca.ErrKeyMismatch, "CN=mid"},
		"certificate as key":  {top.pem(), top.pem(), ca.ErrInvalidPEM, "not a private key"},
		"two keys":            {top.pem(), slices.Concat(top.keyPEM(), top.keyPEM()), ca.ErrInvalidPEM, "2 blocks"},
		"garbage as key":      {top.pem(), []byte("x"), ca.ErrInvalidPEM, "no PEM block"},
		"broken key":          {top.pem(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), ca.ErrInvalidPEM, "private key"},
		"encrypted key":       {top.pem(), pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY"}), ca.ErrInvalidPEM, "passphrase"},
		"encrypted, old form": {top.pem(), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}}), ca.ErrInvalidPEM, "passphrase"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ca.LoadRoot(c.cert, c.key)
			wantErr(t, err, c.kind, c.words)
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v is not classed as the caller's fault", err)
			}
		})
	}
}

func TestSign(t *testing.T) {
	root := must(ca.NewRoot(epoch))
	for _, id := range []ca.Identity{manager("m1"), worker("W_2-x")} {
		n := sign(root, id, 0, epoch)
		leaf := n.chain()[0]
		s := leaf.Subject
		if s.CommonName != id.Node || !slices.Equal(s.Organization, []string{cluster}) || !slices.Equal(s.OrganizationalUnit, []string{string(id.Role)}) {
			t.Errorf("subject is %v", s)
		}
		names := []string{string(id.Role), id.Node}
		if id.Role == ca.Manager {
			names = append(names, "swarm-ca")
		}
		if !slices.Equal(leaf.DNSNames, names) {
			t.Errorf("names are %v", leaf.DNSNames)
		}
		if leaf.NotAfter.Sub(epoch) != 90*24*time.Hour || epoch.Sub(leaf.NotBefore) != time.Hour {
			t.Errorf("from %v to %v", leaf.NotBefore, leaf.NotAfter)
		}
		if leaf.IsCA || !leaf.PublicKey.(*ecdsa.PublicKey).Equal(n.key.Public()) {
			t.Error("not the node's")
		}
	}
	a, b := sign(root, worker("n"), 0, epoch).chain()[0], sign(root, worker("n"), 0, epoch).chain()[0]
	if a.SerialNumber.Cmp(b.SerialNumber) == 0 {
		t.Error("serial numbers repeat")
	}
	late := epoch.Add(ca.RootLife - time.Hour)
	if got := sign(root, worker("n"), 0, late).chain()[0].NotAfter; !got.Equal(root.Certificate().NotAfter) {
		t.Errorf("outlives its root: %v", got)
	}
}

func TestSignRefuses(t *testing.T) {
	root := must(ca.NewRoot(epoch))
	_, request := must2(ca.NewRequest())
	makeRequest := func(key crypto.Signer) []byte {
		der := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	block, _ := pem.Decode(request)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	for name, c := range map[string]struct {
		request []byte
		id      ca.Identity
		life    time.Duration
		now     time.Time
		kind    error
		words   string
	}{
		"no node":          {request, worker(""), 0, epoch, ca.ErrInvalidIdentity, "node id"},
		"long node":        {request, worker(strings.Repeat("n", 64)), 0, epoch, ca.ErrInvalidIdentity, "1 to 63"},
		"dots":             {request, worker("a.b"), 0, epoch, ca.ErrInvalidIdentity, "letters"},
		"hyphen":           {request, worker("a-"), 0, epoch, ca.ErrInvalidIdentity, "inner"},
		"a role as a name": {request, worker("swarm-manager"), 0, epoch, ca.ErrInvalidIdentity, "role's name"},
		"authority's name": {request, worker("swarm-ca"), 0, epoch, ca.ErrInvalidIdentity, "role's name"},
		"no cluster":       {request, ca.Identity{Node: "n", Role: ca.Worker}, 0, epoch, ca.ErrInvalidIdentity, "cluster id"},
		"no role":          {request, ca.Identity{Node: "n", Cluster: "c"}, 0, epoch, ca.ErrInvalidIdentity, "role"},
		"short life":       {request, worker("n"), time.Hour - 1, epoch, errdefs.ErrInvalidArgument, "shorter than 1h"},
		"negative life":    {request, worker("n"), -time.Hour, epoch, errdefs.ErrInvalidArgument, "shorter"},
		"root expired":     {request, worker("n"), 0, epoch.Add(ca.RootLife + 1), ca.ErrExpired, "CN=swarm-ca"},
		"root not yet":     {request, worker("n"), 0, epoch.Add(-2 * time.Hour), ca.ErrNotYetValid, "CN=swarm-ca"},
		"no request":       {nil, worker("n"), 0, epoch, ca.ErrInvalidRequest, "no PEM"},
		"a certificate":    {root.EncodeCertificates(), worker("n"), 0, epoch, ca.ErrInvalidRequest, "CERTIFICATE"},
		"two requests":     {slices.Concat(request, request), worker("n"), 0, epoch, ca.ErrInvalidRequest, "single"},
		"not DER":          {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte{1}}), worker("n"), 0, epoch, ca.ErrInvalidRequest, ""},
		"forged":           {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}), worker("n"), 0, epoch, ca.ErrInvalidRequest, "not signed by the key"},
		"other curve":      {makeRequest(ecKey(elliptic.P384())), worker("n"), 0, epoch, ca.ErrInvalidRequest, "P-256"},
		"Ed25519":          {makeRequest(ed25519.NewKeyFromSeed(make([]byte, 32))), worker("n"), 0, epoch, ca.ErrInvalidRequest, "P-256"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := root.Sign(c.request, c.id, c.life, c.now)
			wantErr(t, err, c.kind, c.words, "node "+c.id.Node)
		})
	}
	limited := makeAuthority("limited", ecKey(elliptic.P256()), nil, func(c *x509.Certificate) {
		c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"example.com"}, true
	})
	_, err := must(ca.LoadRoot(limited.pem(), limited.keyPEM())).Sign(request, worker("n"), 0, epoch)
	wantErr(t, err, ca.ErrUnknownAuthority, "do not allow it")
	_, err = must(ca.LoadRoot(root.EncodeCertificates(), nil)).Sign(request, worker("n"), 0, epoch)
	wantErr(t, err, ca.ErrExternal, "node n")
}

func TestComplete(t *testing.T) {
	root := newRoot()
	external := must(ca.LoadRoot(root.EncodeCertificates(), nil))
	_, request := must2(ca.NewRequest())
	issued := must(root.Sign(request, worker("n"), 0, epoch))
	if got := must(external.Complete(issued, request, worker("n"), epoch)); !bytes.Equal(got, issued) {
		t.Error("the certificate was changed")
	}
	withRoot := slices.Concat(issued, root.EncodeCertificates())
	if got := must(external.Complete(withRoot, request, worker("n"), epoch)); !bytes.Equal(got, issued) {
		t.Error("the root was kept in the chain")
	}
	lower := makeAuthority("lower", ecKey(elliptic.P256()), &authority{root.Certificate(), must(ca.ParseKey(must(root.EncodeKey())))}, nil)
	below := must(ca.LoadRoot(slices.Concat(lower.pem(), root.EncodeCertificates()), lower.keyPEM()))
	issuedBelow := must(below.Sign(request, worker("n"), 0, epoch))
	if got := must(external.Complete(issuedBelow, request, worker("n"), epoch)); !bytes.Equal(got, issuedBelow) {
		t.Error("the external authority's own intermediate was lost")
	}
	_, another := must2(ca.NewRequest())
	_, err := external.Complete(issued, another, worker("n"), epoch)
	wantErr(t, err, ca.ErrInvalidRequest, "another key")
	_, err = external.Complete(issued, request, manager("n"), epoch)
	wantErr(t, err, ca.ErrInvalidRequest, "swarm-worker", "swarm-manager")
	_, err = external.Complete(must(newRoot().Sign(request, worker("n"), 0, epoch)), request, worker("n"), epoch)
	wantErr(t, err, ca.ErrUnknownAuthority)
	_, err = external.Complete([]byte("x"), request, worker("n"), epoch)
	wantErr(t, err, ca.ErrInvalidPEM)
	_, err = external.Complete(issued, []byte("x"), worker("n"), epoch)
	wantErr(t, err, ca.ErrInvalidRequest)
}

func TestVerifyRefuses(t *testing.T) {
	root, other := newRoot(), newRoot()
	trust := trustOf(root)
	elsewhere := ca.Identity{Cluster: "cluster2", Node: "n1", Role: ca.Worker}
	good := sign(root, worker("n1"), 0, epoch)
	foreign := makeAuthority("stranger", ecKey(elliptic.P256()), nil, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 })

	// A node that signs as if it were an authority.
	leaf := good.chain()[0]
	minted := makeAuthority("n9", ecKey(elliptic.P256()), &authority{leaf, good.key}, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature
		c.Subject = pkix.Name{CommonName: "n9", Organization: []string{cluster}, OrganizationalUnit: []string{"swarm-manager"}}
		c.DNSNames = []string{"swarm-manager", "n9", "swarm-ca"}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	})
	odd := func(change func(*x509.Certificate)) []*x509.Certificate {
		up := authority{root.Certificate(), must(ca.ParseKey(must(root.EncodeKey())))}
		a := makeAuthority("n1", ecKey(elliptic.P256()), &up, func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature
			c.Subject = pkix.Name{CommonName: "n1", Organization: []string{cluster}, OrganizationalUnit: []string{"swarm-worker"}}
			c.DNSNames = []string{"swarm-worker", "n1"}
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
			change(c)
		})
		return []*x509.Certificate{a.cert}
	}
	_ = must(trust.Verify(odd(func(*x509.Certificate) {}), ca.Want{}, epoch))

	for name, c := range map[string]struct {
		chain []*x509.Certificate
		want  ca.Want
		now   time.Time
		kind  error
		words []string
	}{
		"nothing":                     {nil, ca.Want{}, epoch, ca.ErrNoCertificate, []string{cluster}},
		"the root itself":             {[]*x509.Certificate{root.Certificate()}, ca.Want{}, epoch, ca.ErrNotNode, []string{"authority's"}},
		"not a node's":                {[]*x509.Certificate{foreign.cert}, ca.Want{}, epoch, ca.ErrNotNode, []string{"CN=stranger"}},
		"two roles":                   {odd(func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{"swarm-worker", "swarm-manager"} }), ca.Want{}, epoch, ca.ErrNotNode, []string{"one role"}},
		"unknown role":                {odd(func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{"swarm-king"} }), ca.Want{}, epoch, ca.ErrNotNode, []string{"swarm-king"}},
		"other names":                 {odd(func(c *x509.Certificate) { c.DNSNames = []string{"swarm-manager", "n1"} }), ca.Want{}, epoch, ca.ErrNotNode, []string{"alternative names"}},
		"for one end":                 {odd(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), ca.Want{}, epoch, ca.ErrNotNode, []string{"both ends"}},
		"expired":                     {good.chain(), ca.Want{}, epoch.Add(ca.DefaultLife + time.Second), ca.ErrExpired, []string{"node n1", "join again", "2030-04-02T"}},
		"not yet valid":               {good.chain(), ca.Want{}, epoch.Add(-61 * time.Minute), ca.ErrNotYetValid, []string{"node n1", "clocks"}},
		"other cluster":               {sign(root, elsewhere, 0, epoch).chain(), ca.Want{}, epoch, ca.ErrOtherCluster, []string{"node n1", "cluster2", cluster, "join this one"}},
		"other cluster and authority": {sign(other, elsewhere, 0, epoch).chain(), ca.Want{}, epoch, ca.ErrOtherCluster, []string{"cluster2"}},
		"unknown authority":           {sign(other, worker("n1"), 0, epoch).chain(), ca.Want{}, epoch, ca.ErrUnknownAuthority, []string{"node n1", "missed a change"}},
		"own root brought along":      {append(sign(other, worker("n1"), 0, epoch).chain(), other.Certificate()), ca.Want{}, epoch, ca.ErrUnknownAuthority, nil},
		"signed by a node":            {[]*x509.Certificate{minted.cert, leaf}, ca.Want{}, epoch, ca.ErrUnknownAuthority, []string{"node n9"}},
		"a long chain":                {append(good.chain(), slices.Repeat([]*x509.Certificate{root.Certificate()}, 16)...), ca.Want{}, epoch, ca.ErrUnknownAuthority, []string{"17"}},
		"wrong role":                  {good.chain(), ca.Want{Role: ca.Manager}, epoch, ca.ErrWrongRole, []string{"node n1", "swarm-worker", "swarm-manager", "change its role"}},
		"wrong node":                  {good.chain(), ca.Want{Node: "n2"}, epoch, ca.ErrWrongNode, []string{"node n1", "n2", "address"}},
		"removed":                     {good.chain(), ca.Want{Admit: func(id ca.Identity) error { return errdefs.ErrPermissionDenied }}, epoch, errdefs.ErrPermissionDenied, []string{"node n1"}},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := trust.Verify(c.chain, c.want, c.now)
			wantErr(t, err, c.kind, c.words...)
			if id != (ca.Identity{}) {
				t.Errorf("says %v all the same", id)
			}
		})
	}

	t.Run("the root expired", func(t *testing.T) {
		short := makeAuthority("short", ecKey(elliptic.P256()), nil, func(c *x509.Certificate) { c.NotAfter = epoch.Add(time.Hour) })
		long := makeAuthority("short", short.key, nil, nil) // the same authority, extended
		n := sign(must(ca.LoadRoot(long.pem(), long.keyPEM())), worker("n1"), 0, epoch)
		_, err := must(ca.NewTrust(cluster, short.pem())).Verify(n.chain(), ca.Want{}, epoch.Add(2*time.Hour))
		wantErr(t, err, ca.ErrExpired, "root of cluster "+cluster, "change the root")
	})
	t.Run("no roots", func(t *testing.T) {
		_, err := ca.Trust{Cluster: cluster}.Verify(good.chain(), ca.Want{}, epoch)
		wantErr(t, err, ca.ErrUnknownAuthority, "no root")
	})
	if got := must(trust.Verify(good.chain(), ca.Want{Role: ca.Worker, Node: "n1", Admit: func(ca.Identity) error { return nil }}, epoch)); got != worker("n1") {
		t.Errorf("got %v", got)
	}
}

func TestNewTrustRefuses(t *testing.T) {
	root := newRoot()
	_, err := ca.NewTrust("", root.EncodeCertificates())
	wantErr(t, err, ca.ErrInvalidIdentity)
	_, err = ca.NewTrust(cluster, nil)
	wantErr(t, err, ca.ErrInvalidPEM)
	_, err = ca.NewTrust(cluster, sign(root, worker("n"), 0, epoch).issued)
	wantErr(t, err, ca.ErrInvalidRoot, "CN=n")
	trust := trustOf(root)
	if !bytes.Equal(must(ca.NewTrust(cluster, trust.Encode())).Encode(), root.EncodeCertificates()) {
		t.Error("the roots do not survive encoding")
	}
}
