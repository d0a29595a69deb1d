package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// TLS is what a TLS connection to the brokers trusts and shows. The zero value trusts the system's roots.
type TLS struct {
	CAFile, CAPath, CAData string // PEM file, folder of PEM files, PEM text; together they replace the system's roots
	CertFile, KeyFile      string // client certificate
	ServerName             string // name to verify instead of the broker's host name
}

// Config reads the files and returns the client's TLS settings.
func (t TLS) Config() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	var pems [][]byte
	if t.CAData != "" {
		pems = append(pems, []byte(t.CAData))
	}
	files := []string{}
	if t.CAFile != "" {
		files = append(files, t.CAFile)
	}
	if t.CAPath != "" {
		found, err := filepath.Glob(filepath.Join(t.CAPath, "*"))
		if err != nil {
			return nil, fmt.Errorf("list CA folder %s: %w", t.CAPath, err)
		}
		before := len(files)
		for _, f := range found {
			if ext := filepath.Ext(f); ext == ".pem" || ext == ".crt" {
				files = append(files, f)
			}
		}
		if len(files) == before {
			return nil, fmt.Errorf("CA folder %s holds no .pem or .crt file", t.CAPath)
		}
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("read CA file: %w", err)
		}
		pems = append(pems, b)
	}
	if len(pems) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		for _, b := range pems {
			if !cfg.RootCAs.AppendCertsFromPEM(b) {
				return nil, errors.New("the CA settings hold text without a PEM certificate")
			}
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, errors.New("a client certificate needs both its certificate file and its key file")
	}
	if t.CertFile != "" {
		// Loaded per handshake, so that a renewed certificate is used without a restart.
		if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
			return nil, fmt.Errorf("load client certificate: %w", err)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			return &c, err
		}
	}
	return cfg, nil
}

// Login is who this process is. Files are read again at every login, so that rotated secrets are picked up.
type Login struct {
	User, Password string
	PasswordFile   string // instead of Password
	OAuth          OAuth
}

// OAuth is where bearer tokens come from: a fixed token, a file that something else renews, or a token endpoint
// (RFC 6749 section 4.4, client credentials).
type OAuth struct {
	Token, TokenFile, Endpoint string
	ClientID, ClientSecret     string
	ClientSecretFile           string // instead of ClientSecret
	Scope                      string
	Extensions                 map[string]string // sent with the token (RFC 7628)
}

// Mechanism returns the SASL mechanism called name: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER.
func Mechanism(name string, in Login) (sasl.Mechanism, error) {
	password := func() (string, error) { return secret(in.Password, in.PasswordFile) }
	switch strings.ToUpper(name) {
	case "PLAIN":
		return plain.Plain(func(context.Context) (plain.Auth, error) {
			p, err := password()
			return plain.Auth{User: in.User, Pass: p}, err
		}), nil
	case "SCRAM-SHA-256":
		return scram.Sha256(func(context.Context) (scram.Auth, error) {
			p, err := password()
			return scram.Auth{User: in.User, Pass: p}, err
		}), nil
	case "SCRAM-SHA-512":
		return scram.Sha512(func(context.Context) (scram.Auth, error) {
			p, err := password()
			return scram.Auth{User: in.User, Pass: p}, err
		}), nil
	case "OAUTHBEARER":
		src := &tokenSource{OAuth: in.OAuth, client: &http.Client{Timeout: 30 * time.Second}}
		return oauth.Oauth(func(ctx context.Context) (oauth.Auth, error) {
			t, err := src.token(ctx)
			return oauth.Auth{Token: t, Extensions: in.OAuth.Extensions}, err
		}), nil
	}
	return nil, fmt.Errorf("SASL mechanism %q is not one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER", name)
}

// secret is the text itself or, without one, the file's content less the line's end.
func secret(text, file string) (string, error) {
	if text != "" || file == "" {
		return text, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

type tokenSource struct {
	OAuth
	client *http.Client

	mu      sync.Mutex
	cached  string    // guarded by mu
	expires time.Time // guarded by mu
}

func (s *tokenSource) token(ctx context.Context) (string, error) {
	switch {
	case s.Token != "":
		return s.Token, nil
	case s.TokenFile != "":
		return secret("", s.TokenFile)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cached != "" && time.Now().Before(s.expires) {
		return s.cached, nil
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	if s.Scope != "" {
		form.Set("scope", s.Scope)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return "", fmt.Errorf("OAuth token endpoint: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	key, err := secret(s.ClientSecret, s.ClientSecretFile)
	if err != nil {
		return "", err
	}
	req.SetBasicAuth(url.QueryEscape(s.ClientID), url.QueryEscape(key))
	resp, err := s.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("OAuth token endpoint: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("OAuth token endpoint: %w", err)
	}
	var answer struct {
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"`
		Error       string  `json:"error"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", fmt.Errorf("OAuth token endpoint answered %s without JSON: %w", resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK || answer.AccessToken == "" {
		return "", fmt.Errorf("OAuth token endpoint answered %s, error %q", resp.Status, answer.Error)
	}
	s.cached = answer.AccessToken
	// A tenth of the lifetime is left as room for the clock and for the connection that is about to use it.
	s.expires = time.Now().Add(time.Duration(answer.ExpiresIn * 0.9 * float64(time.Second)))
	return s.cached, nil
}
