package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// The types of PEM blocks.
const (
	certificateBlock = "CERTIFICATE"
	requestBlock     = "CERTIFICATE REQUEST"
	keyBlock         = "PRIVATE KEY"
)

// ErrInvalidPEM is returned for text that does not hold what it should.
var ErrInvalidPEM = fmt.Errorf("invalid PEM: %w", errdefs.ErrInvalidArgument)

// decode returns the blocks of data. Text around blocks is allowed, as openssl writes it; a damaged block is an error,
// where encoding/pem passes over it.
func decode(data []byte) ([]*pem.Block, error) {
	var blocks []*pem.Block
	begun := bytes.Count(data, []byte("-----BEGIN "))
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		blocks, data = append(blocks, block), rest
	}
	switch {
	case begun == 0:
		return nil, fmt.Errorf("there is no PEM block: %w", ErrInvalidPEM)
	case len(blocks) != begun:
		return nil, fmt.Errorf("%d of %d PEM blocks are damaged or cut off: %w", begun-len(blocks), begun, ErrInvalidPEM)
	}
	return blocks, nil
}

// ParseCertificates reads one or more certificates in PEM, and refuses anything else among them.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	blocks, err := decode(data)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for i, block := range blocks {
		if block.Type != certificateBlock {
			return nil, fmt.Errorf("block %d is %q, not a certificate: %w", i+1, block.Type, ErrInvalidPEM)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w: %w", i+1, err, ErrInvalidPEM)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// EncodeCertificates is the reverse of ParseCertificates.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: c.Raw})...)
	}
	return out
}

// ParseKey reads a private key in PEM: PKCS #8, or the older forms for elliptic curves and RSA. An encrypted key is
// refused.
func ParseKey(data []byte) (crypto.Signer, error) {
	blocks, err := decode(data)
	if err != nil {
		return nil, err
	}
	if len(blocks) == 2 && blocks[0].Type == "EC PARAMETERS" {
		blocks = blocks[1:] // openssl writes the curve's name before the key
	}
	if len(blocks) != 1 {
		return nil, fmt.Errorf("there are %d blocks where one private key should be: %w", len(blocks), ErrInvalidPEM)
	}
	return parseKey(blocks[0])
}

func parseKey(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
		return nil, fmt.Errorf("the private key is encrypted with a passphrase; decrypt it first: %w", ErrInvalidPEM)
	case block.Type == keyBlock:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case block.Type == "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case block.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("block %q is not a private key: %w", block.Type, ErrInvalidPEM)
	}
	if err != nil {
		return nil, fmt.Errorf("private key: %w: %w", err, ErrInvalidPEM)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a private key of type %T cannot sign: %w", key, ErrInvalidPEM)
	}
	return signer, nil
}

// EncodeKey writes a private key as PKCS #8 in PEM.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

// sameKey reports whether the public key pub belongs to key.
func sameKey(key crypto.Signer, pub crypto.PublicKey) bool {
	p, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && p.Equal(pub)
}

// weak says why an authority's public key is too weak, or returns "".
func weak(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 {
			return fmt.Sprintf("an RSA key of %d bits is too short, 2048 are needed", n)
		}
	case *ecdsa.PublicKey:
		if n := k.Curve.Params().BitSize; n < 256 {
			return fmt.Sprintf("a curve of %d bits is too small, 256 are needed", n)
		}
	}
	return ""
}
