package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"kaspr.io/kaspr/engine/record"
)

// testGroup is a consumer group, and what its members hold at every moment.
type testGroup struct {
	*testing.T
	addrs []string
	name  string

	mu      sync.Mutex
	changed *sync.Cond
	owners  map[record.Partition]string        // guarded by mu
	placed  map[string]Placement               // guarded by mu; the last of each member
	address map[string]string                  // guarded by mu
	stores  map[string]map[TablePartition]bool // guarded by mu

	session time.Duration // of members that join from now on
}

func newTestGroup(t *testing.T, addrs []string, topics ...string) *testGroup {
	t.Helper()
	g := &testGroup{
		T: t, addrs: addrs, name: "app-" + rand.Text(), owners: map[record.Partition]string{}, placed: map[string]Placement{},
		address: map[string]string{}, stores: map[string]map[TablePartition]bool{}, session: 10 * time.Second,
	}
	g.changed = sync.NewCond(&g.mu)
	admin, err := NewAdmin(Options{Brokers: addrs, ClientID: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	for _, topic := range topics {
		if _, err := admin.Ensure(t.Context(), Topic{Name: topic, Partitions: 6, Replicas: 1}); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// embedded is the addresses of a broker in this process.
func embedded(t *testing.T) []string {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()
}

// testMember is one member; it is its own handler.
type testMember struct {
	g    *testGroup
	name string
	*Member
	stop context.CancelFunc
	done chan struct{}
	dead bool // guarded by g.mu; what its client still tells it counts for nothing
}

// join adds a member that reads the topics as one set with the table "users".
func (g *testGroup) join(name, static string, topics ...string) *testMember {
	g.Helper()
	m := &testMember{g: g, name: name, done: make(chan struct{})}
	g.mu.Lock()
	if g.address[name] == "" {
		g.address[name] = "http://" + name
	}
	if g.stores[name] == nil {
		g.stores[name] = map[TablePartition]bool{}
	}
	g.mu.Unlock()
	opts := Options{
		Brokers: g.addrs, ClientID: name, Group: g.name, InstanceID: static, Log: slog.New(slog.DiscardHandler),
		HeartbeatInterval: 50 * time.Millisecond, SessionTimeout: g.session, RebalanceTimeout: 10 * time.Second,
		MetadataMaxAge: time.Second, Standbys: 1,
		Copartition:  func() []Copartition { return []Copartition{{Topics: topics, Tables: []string{"users"}}} },
		UserData:     m.state,
		OnAssignment: m.assignment,
	}
	member, err := Join(opts, topics, m)
	if err != nil {
		g.Fatal(err)
	}
	m.Member = member
	member.Start()
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	go func() {
		defer close(m.done)
		for ctx.Err() == nil {
			if err := member.Poll(ctx, 100, func(Fetched) {}); err != nil && ctx.Err() == nil {
				g.Errorf("%s: poll: %v", name, err)
				return
			}
		}
	}()
	return m
}

// A process that comes back takes the members out of the group that it left there when it was killed, no others, and its partitions are
// assigned long before their session is over.
func TestExpel(t *testing.T) {
	g := newTestGroup(t, embedded(t), "orders")
	other, fixed := g.join("other", "", "orders"), g.join("fixed", "static", "orders")
	defer other.leave()
	defer fixed.leave()
	g.session = 2 * time.Minute // longer than anything here waits for
	dead := g.join("dead", "", "orders")
	g.until("all three have partitions", func() bool { return g.settled([]string{"other", "fixed", "dead"}, "orders") })
	dead.die()
	admin, err := NewAdmin(Options{Brokers: g.addrs, ClientID: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	left := func(client string) []string {
		t.Helper()
		members, err := admin.Left(t.Context(), g.name, client)
		if err != nil {
			t.Fatal(err)
		}
		return members
	}
	if dead, other := left("dead"), left("other"); len(dead) != 1 || len(other) != 1 {
		t.Fatalf("members: %v, %v", dead, other)
	}
	if static := left("fixed"); len(static) != 0 {
		t.Errorf("a static member, who is known by its name, is among the left: %v", static)
	}
	members := left("dead")
	for range 2 { // a second time it is nobody's
		if err := admin.Expel(t.Context(), g.name, members); err != nil {
			t.Fatal(err)
		}
	}
	if slices.Contains(left("dead"), members[0]) {
		t.Errorf("%s is still a member", members[0])
	}
	if none, err := admin.Left(t.Context(), "no such group", "dead"); err != nil || len(none) != 0 {
		t.Errorf("of a group that is not there: %v, %v", none, err)
	}
	g.until("the others have its partitions", func() bool { return g.settled([]string{"other", "fixed"}, "orders") })
}

// A new group begins with the earliest record; what another's transaction took back is no input, and does not hold up what follows.
func TestMemberReadsCommitted(t *testing.T) {
	c := newCluster(t, 1)
	other := c.client(kgo.TransactionalID("other"))
	for i, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit, kgo.TryAbort, kgo.TryCommit} {
		if err := other.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := other.ProduceSync(c.ctx, &kgo.Record{Topic: "log", Value: fmt.Append(nil, i)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := other.EndTransaction(c.ctx, end); err != nil {
			t.Fatal(err)
		}
	}
	c.opts.Group = "app"
	member, err := Join(c.opts, []string{"log"}, &idle{})
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close(t.Context())
	member.Start()
	read := ""
	for !strings.HasSuffix(read, "4") && c.ctx.Err() == nil {
		err := member.Poll(c.ctx, 100, func(f Fetched) {
			for _, r := range f.Records {
				read += string(r.Value)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if read != "024" {
		t.Errorf("read %q; 0, 2 and 4 were committed", read)
	}
}

// An app that is told to stop while it starts must end, although it was given partitions that nobody was ready for.
func TestMemberClosedBeforeStart(t *testing.T) {
	g := newTestGroup(t, embedded(t), "orders")
	m := &testMember{g: g, name: "a"}
	member, err := Join(Options{Brokers: g.addrs, ClientID: "a", Group: g.name, Log: slog.New(slog.DiscardHandler)}, []string{"orders"}, m)
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		groups, err := kadm.NewClient(member.cl).DescribeGroups(t.Context(), g.name)
		if err == nil && groups[g.name].State == "Stable" {
			break
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("no stable group: %v, %v", groups, err)
		}
	}
	time.Sleep(100 * time.Millisecond) // the client calls back
	done := make(chan struct{})
	go func() {
		defer close(done)
		member.Close(t.Context())
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for a start that never comes")
	}
}

func (m *testMember) leave() {
	m.stop()
	<-m.done
	m.Close(context.Background())
}

// die ends a member as a kill of its process does: the group hears nothing of it.
func (m *testMember) die() {
	m.g.mu.Lock()
	m.dead = true
	maps.DeleteFunc(m.g.owners, func(_ record.Partition, owner string) bool { return owner == m.name })
	m.g.mu.Unlock()
	m.abandon()
	m.stop()
	<-m.done
	m.cl.Close()
}

func (m *testMember) state() MemberState {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	s := MemberState{Instance: m.name, Address: m.g.address[m.name]}
	for tp := range m.g.stores[m.name] {
		s.Stores = append(s.Stores, Store{tp, 1})
	}
	return s
}

func (m *testMember) assignment(p Placement) {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	m.g.placed[m.name] = p
	for _, s := range p.Standbys {
		m.g.stores[m.name][s] = true
		for q, owner := range m.g.owners {
			if owner == m.name && q.Number == s.Number {
				m.g.Errorf("%s stands by for %v and has %v", m.name, s, q)
			}
		}
	}
	m.g.changed.Broadcast()
}

func (m *testMember) Assigned(ps []record.Partition) {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	for _, p := range ps {
		for q, owner := range m.g.owners {
			if q.Number == p.Number && (owner != m.name || q == p) {
				m.g.Errorf("%s gets %v while %s has %v", m.name, p, owner, q)
			}
		}
		m.g.owners[p] = m.name
		m.g.stores[m.name][TablePartition{"users", p.Number}] = true
	}
	m.g.changed.Broadcast()
}

func (m *testMember) Revoked(_ context.Context, ps []record.Partition) { m.Lost(ps) }

func (m *testMember) Lost(ps []record.Partition) {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if m.dead {
		return
	}
	for _, p := range ps {
		if m.g.owners[p] != m.name {
			m.g.Errorf("%s loses %v of %q", m.name, p, m.g.owners[p])
		}
		delete(m.g.owners, p)
	}
	m.g.changed.Broadcast()
}

// until waits for a state of the group.
func (g *testGroup) until(what string, ok func() bool) {
	g.Helper()
	timeout := errors.New("timeout")
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Minute, timeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.changed.Broadcast()
	})()
	g.mu.Lock()
	defer g.mu.Unlock()
	for !ok() {
		if ctx.Err() != nil {
			g.Fatalf("not within a minute: %s\nowners %v\nplaced %+v", what, g.owners, g.placed)
		}
		g.changed.Wait()
	}
}

// settled is true when the members share all partitions of the topics evenly, and each knows who owns what and who keeps
// copies. g.mu is held.
func (g *testGroup) settled(members []string, topics ...string) bool {
	units := map[string]int{}
	for n := range int32(6) {
		owner := g.owners[record.Partition{Topic: topics[0], Number: n}]
		for _, t := range topics {
			if !slices.Contains(members, owner) || g.owners[record.Partition{Topic: t, Number: n}] != owner {
				return false
			}
		}
		units[owner]++
		users := TablePartition{"users", n}
		copies := 0
		for _, m := range members {
			if peer, ok := g.placed[m].Owner(users); !ok || peer != (Peer{owner, g.address[owner]}) {
				return false
			}
			if slices.Contains(g.placed[m].Standbys, users) {
				copies++
			}
		}
		if copies != min(1, len(members)-1) {
			return false
		}
	}
	counts := slices.Sorted(maps.Values(units))
	return len(units) == len(members) && counts[len(counts)-1]-counts[0] <= 1
}

// Members come and go: partitions of one number must be with one member at every moment, every member must learn who owns
// what, and a member that speaks rubbish must not keep the others from it.
func TestMembersCopartitioned(t *testing.T) { membersCopartitioned(t, embedded(t), unreadable) }

// Words of a member that nobody understands: as a whole, and where only our part of them is rubbish.
var (
	unreadable  = []byte{0, 3, 0x7f, 0xff, 0xff, 0xff, 1}
	rubbishData = (&kmsg.ConsumerMemberMetadata{Version: 3, UserData: []byte{1, 0xff, 0xff, 0xff}, Generation: -1}).AppendTo(nil)
)

func membersCopartitioned(t *testing.T, addrs []string, words []byte) {
	g := newTestGroup(t, addrs, "left", "right")
	all := []string{"left", "right"}
	a := g.join("a", "", all...)
	g.until("a has all", func() bool { return g.settled([]string{"a"}, all...) })
	b := g.join("b", "", all...)
	g.until("a and b share", func() bool { return g.settled([]string{"a", "b"}, all...) })
	c := g.join("c", "", all...)
	g.until("a, b and c share", func() bool { return g.settled([]string{"a", "b", "c"}, all...) })

	g.mu.Lock()
	before, standby := maps.Clone(g.owners), maps.Clone(g.placed)
	g.mu.Unlock()
	b.leave()
	g.until("a and c share", func() bool { return g.settled([]string{"a", "c"}, all...) })
	g.mu.Lock()
	for p, was := range before {
		now := g.owners[p]
		if was != "b" && now != was {
			t.Errorf("%v moved from %s to %s, although both are still there", p, was, now)
		}
	}
	warm := 0
	for n := range int32(6) {
		p := record.Partition{Topic: "left", Number: n}
		if before[p] == "b" && slices.Contains(standby[g.owners[p]].Standbys, TablePartition{"users", n}) {
			warm++
		}
	}
	if warm == 0 {
		t.Error("nothing of b went to where its copies were")
	}
	g.address["c"] = "http://c-moved"
	g.mu.Unlock()
	c.Rebalance()
	g.until("a knows c's new address", func() bool { return g.settled([]string{"a", "c"}, all...) })

	joined := make(chan struct{}, 100)
	rubbish, err := kgo.NewClient(kgo.SeedBrokers(g.addrs...), kgo.ConsumerGroup(g.name), kgo.ConsumeTopics(all...),
		kgo.Balancers(&rubbishBalancer{words: words}), kgo.HeartbeatInterval(50*time.Millisecond), kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) {
			if len(ps) > 0 {
				t.Errorf("the member that speaks rubbish gets %v", ps)
			}
			joined <- struct{}{}
		}))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-joined:
	case <-time.After(time.Minute):
		t.Fatal("the member that speaks rubbish did not join")
	}
	d := g.join("d", "", all...)
	g.until("a, c and d share beside a member that speaks rubbish", func() bool { return g.settled([]string{"a", "c", "d"}, all...) })
	rubbish.Close()
	for _, m := range []*testMember{c, a, d} {
		m.leave()
	}
	if len(g.owners) > 0 {
		t.Errorf("still owned after all left: %v", g.owners)
	}
}

// rubbishBalancer is a neighbour in the group whose words nobody can read.
type rubbishBalancer struct {
	copartition
	words []byte
}

func (b *rubbishBalancer) JoinGroupMetadata([]string, map[string][]int32, int32) []byte {
	return b.words
}

func (*rubbishBalancer) ParseSyncAssignment(b []byte) (map[string][]int32, error) {
	return kgo.ParseConsumerSyncAssignment(b)
}

// A static member that comes back elsewhere, the leader or another, must be reachable there.
func TestStaticMemberComesBackElsewhere(t *testing.T) { staticMemberComesBack(t, embedded(t)) }

func staticMemberComesBack(t *testing.T, addrs []string) {
	for _, who := range []string{"a", "b"} {
		t.Run(fmt.Sprint("member ", who), func(t *testing.T) {
			g := newTestGroup(t, addrs, "left", "right")
			ms := map[string]*testMember{"a": g.join("a", "static-a", "left")}
			g.until("a has all", func() bool { return g.settled([]string{"a"}, "left") })
			ms["b"] = g.join("b", "static-b", "left")
			g.until("a and b share", func() bool { return g.settled([]string{"a", "b"}, "left") })
			ms[who].leave()
			g.mu.Lock()
			g.address[who] = "http://elsewhere"
			g.mu.Unlock()
			ms[who] = g.join(who, "static-"+who, "left")
			g.until("both know where it is", func() bool { return g.settled([]string{"a", "b"}, "left") })
			// A rolling update that adds a topic: no one but those that come back has the group assign anew.
			for _, name := range []string{"a", "b"} {
				ms[name].leave()
				g.mu.Lock()
				g.address[name] += "-again"
				g.mu.Unlock()
				ms[name] = g.join(name, "static-"+name, "left", "right")
			}
			g.until("both share the new topic, too", func() bool { return g.settled([]string{"a", "b"}, "left", "right") })
			ms["a"].leave()
			ms["b"].leave()
		})
	}
}
