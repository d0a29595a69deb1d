package child

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Keys is a folder with the certificate of an authority, and the certificates and keys that it signed (PEM).
type Keys string

func (k Keys) file(name string) string { return filepath.Join(string(k), name) }

// CAFile is the certificate of the authority that signed the server's and the clients' certificates.
func (k Keys) CAFile() string { return k.file("ca.crt") }

// ClientFiles are a certificate and a key of a client.
func (k Keys) ClientFiles() (cert, key string) { return k.file("client.crt"), k.file("client.key") }

// ServerFile is the key and the certificate of a server on loopback.
func (k Keys) ServerFile() string { return k.file("server.pem") }

// MakeKeys makes them, once for each folder.
func (k Keys) MakeKeys() error {
	if _, err := os.Stat(k.CAFile()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kaspr test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	sign := func(leaf *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
		der, err := x509.CreateCertificate(rand.Reader, leaf, authority, &key.PublicKey, authorityKey)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
	}
	issue := func(serial int64, name string, usage x509.ExtKeyUsage) (cert, key []byte, err error) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		cert, err = sign(&x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}, private)
		if err != nil {
			return nil, nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(private)
		return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
	}
	ca, err := sign(authority, authorityKey)
	if err != nil {
		return err
	}
	serverCert, serverKey, err := issue(2, "localhost", x509.ExtKeyUsageServerAuth)
	if err != nil {
		return err
	}
	clientCert, clientKey, err := issue(3, "kaspr test client", x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	clientCertFile, clientKeyFile := k.ClientFiles()
	for _, f := range []struct {
		name string
		data []byte
	}{
		{k.ServerFile(), append(serverKey, serverCert...)},
		{clientCertFile, clientCert},
		{clientKeyFile, clientKey},
		{k.CAFile(), ca}, // last: its presence says that all are there
	} {
		if err := os.WriteFile(f.name, f.data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
