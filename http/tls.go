package http

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
)

// TLSFiles are the PEM files of a listener; the zero value is plain HTTP.
type TLSFiles struct {
	Cert, Key string
	ClientCA  string // authorities of the clients' certificates; empty: clients need none
}

// on tells whether the listener speaks TLS.
func (f TLSFiles) on() bool { return f.Cert != "" }

// certificates is what a listener shows and trusts: what its files say, which somebody else renews.
//
// Invariant: what is served was complete and valid when it was read. Files that are not, such as a certificate whose key comes a moment
// later, change nothing but the log.
type certificates struct {
	files   TLSFiles
	clients tls.ClientAuthType
	log     *slog.Logger

	mu     sync.Mutex // guards what follows; held while files are read, which is when they have changed
	looked time.Time
	stamps [3]stamp
	now    *tls.Config
}

// stamp tells one version of a file from another.
type stamp struct {
	changed time.Time
	size    int64
}

// lookEvery is how often files are looked at, at most, when connections come.
const lookEvery = time.Second

func newCertificates(f TLSFiles, clients tls.ClientAuthType, log *slog.Logger) (*certificates, error) {
	c := &certificates{files: f, clients: clients, log: log}
	c.stamps = c.look() // before reading: what changes meanwhile is read again
	now, err := c.read()
	if err != nil {
		return nil, err
	}
	c.now, c.looked = now, time.Now()
	return c, nil
}

// forClient is tls.Config.GetConfigForClient.
func (c *certificates) forClient(*tls.ClientHelloInfo) (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < lookEvery {
		return c.now, nil
	}
	c.looked = time.Now()
	stamps := c.look()
	if stamps == c.stamps {
		return c.now, nil
	}
	c.stamps = stamps
	next, err := c.read()
	if err != nil {
		c.log.Error("changed TLS files are not used, the earlier ones go on", "err", err)
		return c.now, nil
	}
	c.now = next
	c.log.Info("changed TLS files are in use", "certificate", c.files.Cert)
	return c.now, nil
}

func (c *certificates) look() (stamps [3]stamp) {
	for i, file := range []string{c.files.Cert, c.files.Key, c.files.ClientCA} {
		if info, err := os.Stat(file); file != "" && err == nil { // what is missing is told by read
			stamps[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return stamps
}

func (c *certificates) read() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", c.files.Cert, c.files.Key, err)
	}
	if end := cert.Leaf.NotAfter; time.Now().After(end) {
		c.log.Warn("the certificate has expired", "certificate", c.files.Cert, "at", end)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	if c.files.ClientCA == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(c.files.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("authorities of client certificates: %w", err)
	}
	cfg.ClientCAs, cfg.ClientAuth = x509.NewCertPool(), c.clients
	if !cfg.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("authorities of client certificates: %s has no PEM certificate", c.files.ClientCA)
	}
	return cfg, nil
}

// secure has a listener speak TLS, if there are files. Clients' certificates are asked for as clients says, if there are authorities for them.
func secure(ln net.Listener, f TLSFiles, clients tls.ClientAuthType, log *slog.Logger) (net.Listener, error) {
	if !f.on() {
		return ln, nil
	}
	c, err := newCertificates(f, clients, log)
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return tlsListener{ln, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: c.forClient}}, nil
}

type tlsListener struct {
	net.Listener
	cfg *tls.Config
}

func (l tlsListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tlsConn{tls.Server(conn, l.cfg)}, nil
}

// tlsConn tells a client that speaks plain HTTP what is wrong.
type tlsConn struct{ *tls.Conn }

// Handshake is called by fasthttp before the first request, with the deadlines of one set.
func (c *tlsConn) Handshake() error {
	err := c.HandshakeContext(context.Background())
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) && plain.Conn != nil && isMethod(string(plain.RecordHeader[:])) {
		_, _ = io.WriteString(plain.Conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nthis port speaks HTTPS: ask https://\n") // it is closed anyway
	}
	return err
}

// isMethod tells the begin of a request of plain HTTP.
func isMethod(begin string) bool {
	switch begin {
	case "GET /", "HEAD ", "POST ", "PUT /", "DELET", "PATCH", "OPTIO":
		return true
	}
	return false
}

// access is what a request must show to be answered. The zero value asks for nothing.
type access struct {
	token       string // empty: none
	certificate bool   // of a client authority
}

// admits tells whether a request shows it, and answers it when it does not.
func (a access) admits(ctx *fasthttp.RequestCtx) bool {
	if a.certificate {
		if state := ctx.TLSConnectionState(); state == nil || len(state.VerifiedChains) == 0 {
			fail(ctx, fasthttp.StatusForbidden, "a client certificate is needed")
			return false
		}
	}
	if !bears(ctx, a.token) {
		ctx.Response.Header.Set("WWW-Authenticate", "Bearer")
		fail(ctx, fasthttp.StatusUnauthorized, "a token is needed: Authorization: Bearer …")
		return false
	}
	return true
}

// TrustOwn trusts the server that shows exactly the certificate of a file, whatever its names: the own process on this machine.
func TrustOwn(certFile string) (*tls.Config, error) {
	text, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s has no PEM certificate", certFile)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, // what follows is stricter
		VerifyConnection: func(s tls.ConnectionState) error {
			if !bytes.Equal(s.PeerCertificates[0].Raw, block.Bytes) {
				return fmt.Errorf("whoever answers does not have the certificate of %s", certFile)
			}
			return nil
		},
	}, nil
}
