//go:build integration

package realregistry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/enginetest/child"
)

// The registry's program. To bump: change both; the test that fails names the new checksum.
const (
	version = "3.0.9"
	sum     = "2b28181501a20cbf6efcd77f9b7153908fc01f3d3a7c32024c0bd9e1b04c8a43"
)

// Options are what a test wants beside an open registry.
type Options struct {
	TLS   bool              // only TLS, with a certificate of CAFile's authority
	Users map[string]string // name to password: nobody else is let in
}

// Registry is one running (or stopped, or killed) registry. Its schemas stay over restarts.
type Registry struct {
	child.Server
	port int
	opts Options
}

// New starts a registry for one test. It is gone when the test ends; when the test failed, the end of its log is shown.
func New(t testing.TB, opts Options) *Registry {
	t.Helper()
	program, err := child.Archive(t.Context(), "io.apicurio:apicurio-registry-app:"+version+":tar.gz:all", sum)
	if err != nil {
		t.Fatal(err)
	}
	ports, err := child.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := child.NewDir("registry")
	if err != nil {
		t.Fatal(err)
	}
	r := &Registry{port: ports[0], opts: opts}
	r.Server = child.Server{Dir: dir, Name: "the registry", Ready: r.ready, Command: func() *exec.Cmd {
		return exec.Command("java", append(r.flags(), "-jar", filepath.Join(program, "apicurio-registry-app-"+version+"-runner.jar"))...)
	}}
	r.CloseAfter(t)
	if opts.TLS {
		if err := r.MakeKeys(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// flags are the JVM's, and the registry's settings.
func (r *Registry) flags() []string {
	port := strconv.Itoa(r.port)
	settings := map[string]string{
		"quarkus.http.host":                          "127.0.0.1",
		"quarkus.http.port":                          port,
		"quarkus.oidc.tenant-enabled":                "false",
		"apicurio.datasource.url":                    "jdbc:h2:file:" + r.File("schemas"),
		"apicurio.datasource.jdbc.initial-size":      "1",
		"apicurio.datasource.jdbc.min-size":          "1",
		"apicurio.datasource.blue.jdbc.initial-size": "0", // databases it does not use
		"apicurio.datasource.blue.jdbc.min-size":     "0",

		"apicurio.datasource.green.jdbc.initial-size": "0",
		"apicurio.datasource.green.jdbc.min-size":     "0",
	}
	if r.opts.TLS {
		settings["quarkus.http.port"] = "0"
		settings["quarkus.http.ssl-port"] = port
		settings["quarkus.http.insecure-requests"] = "disabled"
		settings["quarkus.http.ssl.certificate.files"] = r.ServerFile()
		settings["quarkus.http.ssl.certificate.key-files"] = r.ServerFile()
	}
	if r.opts.Users != nil {
		settings["quarkus.http.auth.basic"] = "true"
		settings["quarkus.security.users.embedded.plain-text"] = "true"
		settings["quarkus.http.auth.permission.all.paths"] = "/*"
		settings["quarkus.http.auth.permission.all.policy"] = "authenticated"
		for user, password := range r.opts.Users {
			settings["quarkus.security.users.embedded.users."+user] = password
		}
	}
	// The first compiler alone: tests are short.
	flags := []string{"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Duser.home=" + r.Path, "-Djava.io.tmpdir=" + r.Path}
	for name, v := range settings {
		flags = append(flags, "-D"+name+"="+v)
	}
	return flags
}

// URL is where the registry has Confluent's API.
func (r *Registry) URL() string {
	scheme := "http"
	if r.opts.TLS {
		scheme = "https"
	}
	return fmt.Sprintf("%s://127.0.0.1:%d/apis/ccompat/v7", scheme, r.port)
}

// ready asks for its subjects, as anybody: to be refused is an answer, too.
func (r *Registry) ready(string) bool {
	transport := &http.Transport{DisableKeepAlives: true}
	if r.opts.TLS {
		pem, err := os.ReadFile(r.CAFile())
		pool := x509.NewCertPool()
		if err != nil || !pool.AppendCertsFromPEM(pem) {
			return false
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL()+"/subjects", nil)
	if err != nil {
		return false
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized && r.opts.Users != nil
}
