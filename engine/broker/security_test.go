package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Clusters that give tokens for client credentials must be asked as RFC 6749 says, once per lifetime, and a refusal must
// say what the endpoint said.
func TestTokenEndpoint(t *testing.T) {
	asked, lifetime := 0, 3600
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		id, key, _ := r.BasicAuth()
		if r.Method != http.MethodPost || r.FormValue("grant_type") != "client_credentials" || r.FormValue("scope") != "kafka" ||
			id != "app%2F1" || key != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error": "invalid_client"}`)
			return
		}
		fmt.Fprintf(w, `{"access_token": "token-%d", "expires_in": %d}`, asked, lifetime)
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	source := &tokenSource{OAuth: OAuth{Endpoint: server.URL, ClientID: "app/1", ClientSecretFile: file, Scope: "kafka"}, client: server.Client()}
	want := func(s *tokenSource, token, failure string) {
		t.Helper()
		got, err := s.token(t.Context())
		if got != token || (err == nil) != (failure == "") || err != nil && !strings.Contains(err.Error(), failure) {
			t.Errorf("token %q, %v; want %q, %q", got, err, token, failure)
		}
	}
	want(source, "token-1", "")
	want(source, "token-1", "")
	source.expires = time.Now() // as if its lifetime were over
	want(source, "token-2", "")
	if err := os.WriteFile(file, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	source.expires = time.Now()
	want(source, "", "invalid_client") // the file is read again: a rotated secret counts at once
	want(&tokenSource{OAuth: OAuth{TokenFile: file}}, "another", "")
	want(&tokenSource{OAuth: OAuth{Token: "fixed", TokenFile: file}}, "fixed", "")
}

// A password that is rotated in its file counts at the next login, without a restart.
func TestPasswordFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	plain, err := Mechanism("plain", Login{User: "u", PasswordFile: file})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := plain.Authenticate(t.Context(), "broker:9092"); err == nil {
		t.Error("logs in without the file")
	}
	for _, password := range []string{"one", "two"} {
		if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, said, err := plain.Authenticate(t.Context(), "broker:9092"); err != nil || string(said) != "\x00u\x00"+password {
			t.Errorf("said %q, %v", said, err)
		}
	}
}

// Trust must come from exactly where the settings say, and settings that trust nothing must not pass.
func TestTLSConfig(t *testing.T) {
	certificate, key := keyPair(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca, noCA := write("ca/root.pem", certificate), write("none/readme.txt", "nothing")
	keyFile := write("client.key", key)
	for name, c := range map[string]struct {
		tls     TLS
		failure string
	}{
		"system":      {TLS{}, ""},
		"file":        {TLS{CAFile: ca}, ""},
		"folder":      {TLS{CAPath: filepath.Dir(ca)}, ""},
		"text":        {TLS{CAData: certificate}, ""},
		"client":      {TLS{CAFile: ca, CertFile: ca, KeyFile: keyFile}, ""},
		"no file":     {TLS{CAFile: ca + "x"}, "no such file"},
		"no pem":      {TLS{CAFile: noCA}, "without a PEM certificate"},
		"empty":       {TLS{CAPath: filepath.Dir(noCA)}, "holds no .pem or .crt file"},
		"half":        {TLS{CertFile: ca}, "both its certificate file and its key file"},
		"not the key": {TLS{CertFile: ca, KeyFile: ca}, "load client certificate"},
	} {
		got, err := c.tls.Config()
		if (err == nil) != (c.failure == "") || err != nil && !strings.Contains(err.Error(), c.failure) {
			t.Errorf("%s: %v, want %q", name, err, c.failure)
			continue
		}
		if err != nil {
			continue
		}
		if system := got.RootCAs == nil; system != (name == "system") {
			t.Errorf("%s: trusts the system's roots: %v", name, system)
		}
		if shows := got.GetClientCertificate != nil; shows != (name == "client") {
			t.Errorf("%s: shows a certificate: %v", name, shows)
		}
	}
}

func keyPair(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}
