//go:build integration

package realkafka

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"kaspr.io/kaspr/engine/enginetest/child"
)

func TestMain(m *testing.M) {
	if os.Getenv("REALKAFKA_ORPHAN") == "1" {
		orphan()
	}
	os.Exit(Run(m))
}

func client(t *testing.T, address string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(address)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Fault tests need acknowledged records to be there after a crash of the broker, and the same address.
func TestAcknowledgedRecordsSurviveAKill(t *testing.T) {
	b := Shared(t)
	ctx := bounded(t)
	cl := client(t, b.Addr(), kgo.ConsumeTopics("survivors"))
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, 1, 1, nil, "survivors"); err != nil {
		t.Fatal(err)
	}
	const records = 100
	for i := range records {
		err := cl.ProduceSync(ctx, &kgo.Record{Topic: "survivors", Value: strconv.AppendInt(nil, int64(i), 10)}).FirstErr()
		if err != nil {
			t.Fatal(err)
		}
	}
	b.Kill()
	if err := b.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	for next := 0; next < records; {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("only %d of %d records came back: %v", next, records, fetches.Err())
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if string(r.Value) != strconv.Itoa(next) {
				t.Fatalf("record %d holds %q", next, r.Value)
			}
			next++
		})
	}
	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := b.Restart(ctx); err != nil {
		t.Fatal(err)
	}
}

// A pause must look like one to a client: silence, then the answer.
func TestPausedBrokerAnswersAfterResume(t *testing.T) {
	b := Shared(t)
	cl := client(t, b.Addr())
	if err := cl.Ping(bounded(t)); err != nil {
		t.Fatal(err)
	}
	b.Pause()
	answer := make(chan error, 1)
	go func() { answer <- cl.Ping(context.WithoutCancel(t.Context())) }()
	select {
	case err := <-answer:
		t.Errorf("a paused broker answered: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	b.Resume()
	select {
	case err := <-answer:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("no answer after the pause")
	}
}

func TestEveryMechanismLogsIn(t *testing.T) {
	mechanisms := []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"}
	b := New(t, Options{
		Users: map[string]string{"ada": "count-of-lovelace"},
		Listeners: []Listener{
			{Name: "SASL", Protocol: "SASL_PLAINTEXT", Mechanisms: mechanisms},
			{Name: "SASLTLS", Protocol: "SASL_SSL", Mechanisms: mechanisms},
			{Name: "TLS", Protocol: "SSL"},
			{Name: "MUTUAL", Protocol: "SSL", ClientCert: true},
		},
	})
	pem, err := os.ReadFile(b.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	certificate, err := tls.LoadX509KeyPair(b.ClientFiles())
	if err != nil {
		t.Fatal(err)
	}
	trusting := kgo.DialTLSConfig(&tls.Config{RootCAs: roots})
	known := kgo.DialTLSConfig(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}})
	login := func(password string) map[string]sasl.Mechanism {
		s := scram.Auth{User: "ada", Pass: password}
		return map[string]sasl.Mechanism{
			"PLAIN":         plain.Auth{User: "ada", Pass: password}.AsMechanism(),
			"SCRAM-SHA-256": s.AsSha256Mechanism(),
			"SCRAM-SHA-512": s.AsSha512Mechanism(),
			"OAUTHBEARER":   oauth.Auth{Token: Token("ada", time.Hour)}.AsMechanism(),
		}
	}
	ping := func(listener string, opts ...kgo.Opt) error {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		opts = append(opts, kgo.RequestRetries(0))
		return client(t, b.Listen(listener), opts...).Ping(ctx)
	}
	for name, mechanism := range login("count-of-lovelace") {
		if err := ping("SASL", kgo.SASL(mechanism)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := ping("SASLTLS", kgo.SASL(mechanism), trusting); err != nil {
			t.Errorf("%s over TLS: %v", name, err)
		}
	}
	for name, mechanism := range login("wrong") {
		if name != "OAUTHBEARER" && ping("SASL", kgo.SASL(mechanism)) == nil {
			t.Errorf("%s: a wrong password was accepted", name)
		}
	}
	if err := ping("SASL", kgo.SASL(oauth.Auth{Token: Token("ada", -time.Hour)}.AsMechanism())); err == nil {
		t.Error("a stale token was accepted")
	}
	if err := ping("TLS", trusting); err != nil {
		t.Errorf("TLS: %v", err)
	}
	if err := ping("MUTUAL", known); err != nil {
		t.Errorf("client certificate: %v", err)
	}
	if err := ping("MUTUAL", trusting); err == nil {
		t.Error("a client without certificate was let in")
	}
}

// A test binary that is killed must leave no JVM behind; its files go with the next start.
func TestBrokerDiesWithItsTestBinary(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "REALKAFKA_ORPHAN=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	var dir string
	if _, err := fmt.Sscanf(strings.TrimSpace(line), "%d %s", &pid, &dir); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for syscall.Kill(pid, 0) == nil && !zombie(pid) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d still runs", pid)
		}
		time.Sleep(20 * time.Millisecond)
	}
	fresh, err := child.NewDir("kafka")
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Remove()
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there", filepath.Base(dir))
	}
}

// zombie tells whether a process ended and only waits for whoever adopted it.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), ") Z ")
}

// orphan is the test binary that will be killed: it starts a broker and says which.
func orphan() {
	b, err := Start(context.Background(), Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(b.PID(), b.Path)
	select {}
}
