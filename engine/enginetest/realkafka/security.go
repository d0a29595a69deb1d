//go:build integration

package realkafka

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// CAFile is the certificate (PEM) of the authority that signed the broker's and the clients' certificates.
func (b *Broker) CAFile() string { return filepath.Join(b.dir, "ca.crt") }

// ClientFiles are a certificate and a key (PEM) that listeners with ClientCert accept.
func (b *Broker) ClientFiles() (cert, key string) {
	return filepath.Join(b.dir, "client.crt"), filepath.Join(b.dir, "client.key")
}

// Token is a bearer token that listeners with OAUTHBEARER accept: unsigned, as Kafka's development validator wants it.
func Token(subject string, lifetime time.Duration) string {
	now := time.Now()
	part := func(json string) string { return base64.RawURLEncoding.EncodeToString([]byte(json)) }
	return part(`{"alg":"none"}`) + "." +
		part(fmt.Sprintf(`{"sub":%q,"iat":%d,"exp":%d}`, subject, now.Unix(), now.Add(lifetime).Unix())) + "."
}

// secure adds one listener's properties.
func (b *Broker) secure(properties map[string]string, l Listener, users map[string]string) error {
	prefix := "listener.name." + strings.ToLower(l.Name) + "."
	if strings.HasPrefix(l.Protocol, "SASL_") {
		properties[prefix+"sasl.enabled.mechanisms"] = strings.Join(l.Mechanisms, ",")
		for _, mechanism := range l.Mechanisms {
			login, ok := loginModule(mechanism, users)
			if !ok {
				return fmt.Errorf("listener %s: no login module for %s", l.Name, mechanism)
			}
			properties[prefix+strings.ToLower(mechanism)+".sasl.jaas.config"] = login
		}
	}
	if strings.HasSuffix(l.Protocol, "SSL") {
		if err := b.makeKeys(); err != nil {
			return err
		}
		properties[prefix+"ssl.keystore.type"] = "PEM"
		properties[prefix+"ssl.keystore.location"] = filepath.Join(b.dir, "server.pem")
		properties[prefix+"ssl.truststore.type"] = "PEM"
		properties[prefix+"ssl.truststore.location"] = b.CAFile()
		if l.ClientCert {
			properties[prefix+"ssl.client.auth"] = "required"
		}
	}
	return nil
}

func loginModule(mechanism string, users map[string]string) (string, bool) {
	const packages = "org.apache.kafka.common.security."
	switch mechanism {
	case "PLAIN":
		login := packages + "plain.PlainLoginModule required"
		for _, user := range slices.Sorted(maps.Keys(users)) {
			login += fmt.Sprintf(" user_%s=%q", user, users[user])
		}
		return login + ";", true
	case "SCRAM-SHA-256", "SCRAM-SHA-512":
		return packages + "scram.ScramLoginModule required;", true
	case "OAUTHBEARER":
		return packages + `oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";`, true
	}
	return "", false
}

// makeKeys writes an authority and the certificates it signed, once per broker.
func (b *Broker) makeKeys() error {
	if _, err := os.Stat(b.CAFile()); !errors.Is(err, fs.ErrNotExist) {
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
	clientCertFile, clientKeyFile := b.ClientFiles()
	for _, f := range []struct {
		name string
		data []byte
	}{
		{filepath.Join(b.dir, "server.pem"), append(serverKey, serverCert...)},
		{clientCertFile, clientCert},
		{clientKeyFile, clientKey},
		{b.CAFile(), ca}, // last: its presence says that all are there
	} {
		if err := os.WriteFile(f.name, f.data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
