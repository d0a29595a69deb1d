package http

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	nethttp "net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) sign(t *testing.T, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.next++
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.next), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made, key
}

// server is a certificate for this machine, client one to show; each with its key, as PEM.
func (a *authority) server(t *testing.T) (cert, key []byte) {
	return encoded(t)(a.sign(t, &x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}))
}

func (a *authority) client(t *testing.T) (cert, key []byte) {
	return encoded(t)(a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "client"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}))
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func encoded(t *testing.T) func(*x509.Certificate, *ecdsa.PrivateKey) (cert, key []byte) {
	return func(c *x509.Certificate, k *ecdsa.PrivateKey) ([]byte, []byte) {
		t.Helper()
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	}
}

func write(t *testing.T, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// filesOf writes a listener's files to a folder.
func filesOf(t *testing.T, cert, key, clients []byte) TLSFiles {
	t.Helper()
	dir := t.TempDir()
	f := TLSFiles{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	write(t, f.Cert, cert)
	write(t, f.Key, key)
	if clients != nil {
		f.ClientCA = filepath.Join(dir, "ca.crt")
		write(t, f.ClientCA, clients)
	}
	return f
}

// httpsClient trusts an authority and shows a certificate, if there is one.
func httpsClient(t *testing.T, trusted []byte, cert, key []byte) *nethttp.Client {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trusted)
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	if cert != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	transport := &nethttp.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}
	return &nethttp.Client{Transport: transport}
}

// status is that of an answer, or 0 without one.
func status(t *testing.T, c *nethttp.Client, url string, headers ...string) (int, string) {
	t.Helper()
	req, err := nethttp.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// What a view shows must be for those with a certificate of the right authority and the token, while probes get by without.
func TestTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	cert, key := ours.server(t)
	o := Options{
		TLS: filesOf(t, cert, key, ours.pem()), Token: "secret", PeerSecret: "s", Peer: func(_ Trace, q []byte) ([]byte, error) { return q, nil },
		Schedule: func(ScheduleQuery) (int, any) { return 200, "rem-77" },
	}
	s := serveViews(t, o, View{Method: "GET", Text: "/a", Serve: func(r *Request) Response {
		return Response{Status: 200, Body: []byte(strings.Split(string(r.Head), "\n")[1])}
	}})
	base := "https://" + s.Addr()
	good, foreign := httpsClient(t, ours.pem(), nil, nil), httpsClient(t, others.pem(), nil, nil)
	clientCert, clientKey := ours.client(t)
	with := httpsClient(t, ours.pem(), clientCert, clientKey)
	for name, c := range map[string]struct {
		client *nethttp.Client
		path   string
		token  string
		want   int
	}{
		"probe": {good, "/healthz", "", 200}, "metrics": {good, "/metrics", "", 200}, "view without a certificate": {good, "/a", "secret", 403},
		"view without the token": {with, "/a", "", 401}, "view": {with, "/a", "secret", 200}, "another's server": {foreign, "/healthz", "", 0},
		"schedule without a certificate": {good, "/schedule", "secret", 403}, "schedule without the token": {with, "/schedule", "", 401},
		"schedule": {with, "/schedule", "secret", 200},
	} {
		if code, text := status(t, c.client, base+c.path, "Authorization", "Bearer "+c.token); code != c.want {
			t.Errorf("%s: %d %s, want %d", name, code, text, c.want)
		} else if name == "view" && text != "https" {
			t.Errorf("the view sees the scheme %q", text)
		}
	}
	// A certificate of an authority that is not asked for is not sent by Go's client, unless it is made to.
	otherCert, otherKey := others.client(t)
	forged := httpsClient(t, ours.pem(), otherCert, otherKey)
	pair, _ := tls.X509KeyPair(otherCert, otherKey)
	forged.Transport.(*nethttp.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	if code, text := status(t, forged, base+"/a", "Authorization", "Bearer secret"); code != 0 {
		t.Errorf("a certificate of another authority: %d %s", code, text)
	}
	if code, text := status(t, nethttp.DefaultClient, "http://"+s.Addr()+"/healthz"); code != 400 || !strings.Contains(text, "ask https://") {
		t.Errorf("plain HTTP: %d %s", code, text)
	}

	// Processes of the app read each other's tables over TLS, by the secret alone, and trust only the authority they are told of.
	for pems, want := range map[string]bool{string(ours.pem()): true, string(others.pem()): false} {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(pems))
		p := NewPeers(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool})
		answer, err := p.Read(t.Context(), "https://s@"+s.Addr(), []byte("q"))
		if (err == nil) != want || want && string(answer) != "q" {
			t.Errorf("peer: %q, %v, want %v", answer, err, want)
		}
		p.Close()
	}

	// The own process is trusted by its certificate, whatever its names; another's is not.
	otherServer, _ := others.server(t)
	wrong := filepath.Join(t.TempDir(), "other.crt")
	write(t, wrong, otherServer)
	for file, want := range map[string]int{o.TLS.Cert: 200, wrong: 0} {
		trust, err := TrustOwn(file)
		if err != nil {
			t.Fatal(err)
		}
		if code, _, err := Ask(s.Addr(), "/healthz", 10*time.Second, trust); code != want {
			t.Errorf("Ask with the certificate %s: %d %v", file, code, err)
		}
	}
}

// The admin server lets nobody in without a certificate, not even to the console's page.
func TestAdminTLS(t *testing.T) {
	ours := newAuthority(t)
	cert, key := ours.server(t)
	s, err := ListenAdmin(t.Context(), AdminOptions{
		Addr: "0.0.0.0:0", TLS: filesOf(t, cert, key, ours.pem()), Admin: &fakeAdmin{}, Console: fakeConsole{}, ConsoleFor: "all", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	_, port, _ := net.SplitHostPort(s.Addr())
	base := "https://localhost:" + port
	clientCert, clientKey := ours.client(t)
	for _, path := range []string{"/table/x/k/", "/console/", "/console/api/overview"} {
		if code, _ := status(t, httpsClient(t, ours.pem(), nil, nil), base+path); code != 0 {
			t.Errorf("%s without a certificate: %d", path, code)
		}
		if code, text := status(t, httpsClient(t, ours.pem(), clientCert, clientKey), base+path); code != 200 {
			t.Errorf("%s with one: %d %s", path, code, text)
		}
	}
}

// A renewed certificate must be served without a restart, and a broken one must not end what works.
func TestTLSReload(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	cert, key := first.server(t)
	files := filesOf(t, cert, key, nil)
	var said strings.Builder
	c, err := newCertificates(files, tls.NoClientCert, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	served := func() string {
		t.Helper()
		c.mu.Lock()
		c.looked = time.Time{} // a second has passed
		c.mu.Unlock()
		cfg, err := c.forClient(nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cfg.Certificates[0].Certificate[0]}))
	}
	if served() != string(cert) {
		t.Error("not the certificate of the file")
	}
	renewed, renewedKey := second.server(t)
	later := time.Now().Add(time.Minute) // file systems may keep whole seconds
	write(t, files.Cert, renewed)
	if err := os.Chtimes(files.Cert, later, later); err != nil {
		t.Fatal(err)
	}
	if served() != string(cert) || !strings.Contains(said.String(), "changed TLS files are not used") {
		t.Errorf("a certificate without its key is in use, or nobody was told: %s", said.String())
	}
	write(t, files.Key, renewedKey)
	if err := os.Chtimes(files.Key, later, later); err != nil {
		t.Fatal(err)
	}
	if served() != string(renewed) || !strings.Contains(said.String(), "changed TLS files are in use") {
		t.Errorf("the renewed certificate is not in use: %s", said.String())
	}
	if err := os.Remove(files.Cert); err != nil {
		t.Fatal(err)
	}
	if served() != string(renewed) {
		t.Error("a file that is gone took the certificate with it")
	}
}

// What is wrong with the files must be said at the start, with their names.
func TestTLSFilesProblems(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.server(t)
	_, other := a.server(t)
	for name, c := range map[string]struct {
		cert, key, clients []byte
		want               string
	}{
		"key of another": {cert, other, nil, "private key does not match"}, "no certificate": {[]byte("x"), key, nil, "tls.crt"}, "no authority": {cert, key, []byte("x"), "ca.crt has no PEM certificate"},
	} {
		registry := prometheus.NewRegistry()
		s, err := Listen(t.Context(), Options{Addr: "127.0.0.1:0", TLS: filesOf(t, c.cert, c.key, c.clients), App: &fakeApp{}, Registry: registry, Own: registry, Log: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "HTTP server: TLS: ") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			s.Close(t.Context())
		}
	}
	missing := fmt.Sprintf("%s/none", t.TempDir())
	if _, err := ListenAdmin(t.Context(), AdminOptions{Addr: "127.0.0.1:0", TLS: TLSFiles{Cert: missing, Key: missing}, Admin: &fakeAdmin{}, Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing files: %v", err)
	}
}

// A client that connects and does not shake hands must be let go like one that does not send its request.
func TestTLSSilence(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.server(t)
	s := serveViews(t, Options{TLS: filesOf(t, cert, key, nil), Read: 200 * time.Millisecond})
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection is still there: %v", err)
	}
}
