package http

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	nethttp "net/http"
	"testing"
	"time"
)

// A flood of clients must not keep the app's processes from reading each other's tables, and must leave nothing behind.
func TestPeersHaveRoom(t *testing.T) {
	ours := newAuthority(t)
	cert, key := ours.server(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ours.pem())
	for name, c := range map[string]struct {
		scheme string
		files  TLSFiles
		trust  *tls.Config
		client *nethttp.Client
	}{
		"plain": {"http", TLSFiles{}, nil, &nethttp.Client{Transport: &nethttp.Transport{DisableKeepAlives: true}}},
		"TLS":   {"https", filesOf(t, cert, key, nil), &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, httpsClient(t, ours.pem(), nil, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveViews(t, Options{Connections: 3, TLS: c.files, PeerSecret: "s", Peer: func(_ Trace, q []byte) ([]byte, error) { return q, nil }})
			early, late := NewPeers(c.trust), NewPeers(c.trust)
			defer early.Close()
			defer late.Close()
			read := func(p *Peers) {
				t.Helper()
				if answer, err := p.Read(t.Context(), c.scheme+"://s@"+s.Addr(), []byte("q")); err != nil || string(answer) != "q" {
					t.Errorf("a process of the app: %q, %v", answer, err)
				}
			}
			read(early)
			var flood []net.Conn
			for range 3 + 2*lobbyMax { // they say nothing
				conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr())
				if err != nil {
					t.Fatal(err)
				}
				flood = append(flood, conn)
			}
			counts := func(clients, peers, lobby int) {
				t.Helper()
				var is [3]int
				for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
					s.rooms.mu.Lock()
					is = [3]int{s.rooms.clients, s.rooms.peers, len(s.rooms.lobby)}
					s.rooms.mu.Unlock()
					if is == [3]int{clients, peers, lobby} {
						return
					}
				}
				t.Errorf("%d clients, %d peers, %d in the lobby; want %d, %d, %d", is[0], is[1], is[2], clients, peers, lobby)
			}
			counts(3, 1, lobbyMax)
			if code, _ := status(t, c.client, c.scheme+"://"+s.Addr()+"/healthz"); code != 503 {
				t.Errorf("a client beyond: %d", code)
			}
			if code, _ := status(t, c.client, c.scheme+"://"+s.Addr()+peerPath, "Authorization", "Bearer wrong"); code != 503 {
				t.Errorf("a client that says it is a process: %d", code)
			}
			read(late)
			read(early)
			for _, conn := range flood {
				_ = conn.Close()
			}
			counts(0, 2, 0)
			if code, _ := status(t, c.client, c.scheme+"://"+s.Addr()+"/healthz"); code != 200 {
				t.Errorf("a client afterwards: %d", code)
			}
		})
	}
}
