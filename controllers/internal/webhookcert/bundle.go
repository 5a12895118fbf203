// SPDX-License-Identifier: Apache-2.0

package webhookcert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	servingLife   = 365 * 24 * time.Hour
	// backdate allows for the clock of an API server that is behind ours.
	backdate = 5 * time.Minute
)

// bundle is what the Secret holds: PEM, as kubernetes.io/tls has it, and the authority that signs.
type bundle struct {
	// authorities are the certificates to trust, the signing one first, then older ones that are still valid.
	authorities []byte
	// authorityKey is the key of the first authority.
	authorityKey []byte
	// certificate and key are what the webhook server shows.
	certificate, key []byte
}

// renew returns what the Secret should hold at a time, and whether that is something new. Each certificate is replaced
// when a third of its life is left, so that weeks of trouble go by unnoticed. A replaced authority stays trusted, because
// other replicas of the manager show its certificates until they have seen the new ones.
func renew(have bundle, names []string, now time.Time) (bundle, bool, error) {
	next, changed := have, false
	authority, authorityKey, err := parsePair(have.authorities, have.authorityKey)
	if err != nil || dueFor(authority, now) {
		if authority, authorityKey, err = newAuthority(now); err != nil {
			return bundle{}, false, err
		}
		if next.authorityKey, err = encodeKey(authorityKey); err != nil {
			return bundle{}, false, err
		}
		next.authorities = append(encodeCertificate(authority.Raw), stillValid(have.authorities, now)...)
		changed = true
	}
	serving, _, err := parsePair(have.certificate, have.key)
	if err == nil && !changed && !dueFor(serving, now) && covers(serving, names) && serving.CheckSignatureFrom(authority) == nil {
		return next, false, nil
	}
	next.certificate, next.key, err = newServing(authority, authorityKey, names, now)
	return next, true, err
}

func dueFor(certificate *x509.Certificate, now time.Time) bool {
	life := certificate.NotAfter.Sub(certificate.NotBefore)
	return now.After(certificate.NotAfter.Add(-life / 3))
}

func covers(certificate *x509.Certificate, names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return certificate.VerifyHostname(name) != nil })
}

func newAuthority(now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "outrigger webhook authority"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	return sign(template, nil, nil)
}

func newServing(
	authority *x509.Certificate, authorityKey *ecdsa.PrivateKey, names []string, now time.Time,
) (certificate, key []byte, err error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "outrigger webhook"},
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.Add(servingLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	leaf, leafKey, err := sign(template, authority, authorityKey)
	if err != nil {
		return nil, nil, err
	}
	key, err = encodeKey(leafKey)
	return encodeCertificate(leaf.Raw), key, err
}

// sign makes a key and a certificate for it; without a parent it signs itself.
func sign(
	template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey,
) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("choosing a serial number: %w", err)
	}
	template.SerialNumber = serial
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, nil, fmt.Errorf("signing a certificate: %w", err)
	}
	certificate, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("reading back a certificate: %w", err)
	}
	return certificate, key, nil
}

// parsePair returns the first certificate of a PEM bundle and its key.
func parsePair(certificates, key []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(certificates)
	keyBlock, _ := pem.Decode(key)
	if block == nil || keyBlock == nil {
		return nil, nil, errors.New("no certificate or no key")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("reading a certificate: %w", err)
	}
	parsed, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("reading a key: %w", err)
	}
	if !parsed.PublicKey.Equal(certificate.PublicKey) {
		return nil, nil, errors.New("certificate and key do not belong together")
	}
	return certificate, parsed, nil
}

func stillValid(authorities []byte, now time.Time) []byte {
	var kept []byte
	for block, rest := pem.Decode(authorities); block != nil; block, rest = pem.Decode(rest) {
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil && now.Before(certificate.NotAfter) {
			kept = append(kept, encodeCertificate(certificate.Raw)...)
		}
	}
	return kept
}

func encodeCertificate(raw []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}), nil
}
