package http

import (
	"net"
	"slices"
	"sync"

	"github.com/valyala/fasthttp"
)

// rooms gives connections their places: clients as many as webConnectionsMax says, other processes of the app more of their own, so that
// a flood of clients does not keep them from reading tables here.
//
// Whose a connection is shows with its first request. One that comes when clients have no place left is let into the lobby until then: a
// client is answered with 503, a process has its place. If the lobby is full, whoever has been there longest is put out. Processes ask at
// once, so what a flood that says nothing puts out is itself.
//
// Invariant: clients and peers count the open connections with such a place, and lobby has those without one, in the order they came.
type rooms struct {
	net.Listener
	clientsMax int

	mu      sync.Mutex
	clients int       // guarded by mu
	peers   int       // guarded by mu
	lobby   []*roomed // guarded by mu
}

const (
	lobbyMax = 64
	peersMax = 1024 // at 64 of each process (Peers), those of 16 that ask as much as they can
)

// all is how many connections there are at most.
func (r *rooms) all() int { return r.clientsMax + peersMax + lobbyMax + lobbyMax } // the last ones are being put out

type place int

const (
	inLobby place = iota
	ofClient
	ofPeer
	gone
)

// roomed is a connection with a place.
type roomed struct {
	net.Conn
	rooms *rooms
	place place // guarded by rooms.mu
}

func (r *rooms) Accept() (net.Conn, error) {
	conn, err := r.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &roomed{Conn: conn, rooms: r}
	if out := r.enter(c); out != nil {
		_ = out.Close() // nothing was asked there yet
	}
	return c, nil
}

// enter gives a new connection a place, or lets it into the lobby and says who has to leave that.
func (r *rooms) enter(c *roomed) (out *roomed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.clients < r.clientsMax {
		r.clients++
		c.place = ofClient
		return nil
	}
	if len(r.lobby) == lobbyMax {
		out = r.lobby[0]
		out.leave()
	}
	r.lobby = append(r.lobby, c)
	return out
}

// leave gives the place up. rooms.mu is held.
func (c *roomed) leave() {
	r := c.rooms
	switch c.place {
	case ofClient:
		r.clients--
	case ofPeer:
		r.peers--
	case inLobby:
		at := slices.Index(r.lobby, c)
		r.lobby = slices.Delete(r.lobby, at, at+1)
	}
	c.place = gone
}

func (c *roomed) Close() error {
	c.rooms.mu.Lock()
	c.leave()
	c.rooms.mu.Unlock()
	return c.Conn.Close()
}

// seat finds the place of a connection that asks, as a process of the app or as a client; false: there is none left.
func (c *roomed) seat(peer bool) bool {
	r := c.rooms
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case c.place == gone:
		return false
	case peer && c.place != ofPeer && r.peers < peersMax:
		c.leave()
		c.place = ofPeer
		r.peers++
	case c.place == inLobby && r.clients < r.clientsMax:
		c.leave()
		c.place = ofClient
		r.clients++
	}
	return c.place != inLobby
}

// seated finds the place of a request's connection, or answers that there is none.
func (s *Server) seated(ctx *fasthttp.RequestCtx) bool {
	conn := ctx.Conn()
	if secured, ok := conn.(*tlsConn); ok {
		conn = secured.NetConn()
	}
	c, ok := conn.(*roomed)
	if !ok || c.seat(string(ctx.Path()) == peerPath && s.isPeer(&ctx.Request.Header)) {
		return true
	}
	ctx.SetConnectionClose()
	ctx.Response.Header.Set("Retry-After", retryAfter)
	fail(ctx, fasthttp.StatusServiceUnavailable, "too many connections")
	return false
}
