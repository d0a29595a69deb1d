package broker

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/record"
)

// parsed is partitions written as "t/0 t/1", stores as "users/0@17".
func parsed(text string) (ps []record.Partition, stores []Store) {
	for _, f := range strings.Fields(text) {
		var s Store
		name, rest, _ := strings.Cut(f, "/")
		if _, err := fmt.Sscanf(rest, "%d@%d", &s.Number, &s.Offset); err == nil {
			s.Table = name
			stores = append(stores, s)
			continue
		}
		if _, err := fmt.Sscanf(rest, "%d", &s.Number); err != nil {
			panic(f)
		}
		ps = append(ps, record.Partition{Topic: name, Number: s.Number})
	}
	return ps, stores
}

// member is one that subscribes to topics, was part of a generation, and claims partitions and stores.
func member(topics string, generation int32, claims string) joining {
	m := joining{topics: map[string]bool{}, generation: generation, ours: true}
	for _, t := range strings.Fields(topics) {
		m.topics[t] = true
	}
	m.owned, m.state.Stores = parsed(claims)
	return m
}

func formatted[T any](all [][]T, one func(T) string) string {
	var members []string
	for _, m := range all {
		var parts []string
		for _, p := range m {
			parts = append(parts, one(p))
		}
		members = append(members, strings.Join(parts, " "))
	}
	return strings.Join(members, " | ")
}

func (d decision) actives() string {
	return formatted(d.active, func(p record.Partition) string { return fmt.Sprintf("%s/%d", p.Topic, p.Number) })
}

func (d decision) standbys() string {
	return formatted(d.standby, func(p TablePartition) string { return fmt.Sprintf("%s/%d", p.Table, p.Number) })
}

func TestAssign(t *testing.T) {
	ab := []Copartition{{Topics: []string{"a", "b"}, Tables: []string{"users"}}}
	two := map[string]int32{"a": 2, "b": 2}
	unread := member("", -1, "")
	unread.ours = false
	foreign := member("a b", -1, "")
	foreign.ours = false
	cases := []struct {
		name            string
		s               situation
		active, standby string
		waiting         []string
	}{
		{
			name: "nobody", s: situation{leader: -1, counts: two, sets: ab},
		},
		{
			name: "one member gets all", s: situation{counts: two, sets: ab, standbys: 1, members: []joining{member("a b", -1, "")}},
			active: "a/0 a/1 b/0 b/1",
		},
		{
			name: "equal numbers go together", s: situation{counts: two, sets: ab, members: []joining{member("a b", -1, ""), member("a b", -1, "")}},
			active: "a/0 b/0 | a/1 b/1", standby: " | ",
		},
		{
			name:   "sets that overlap are one",
			s:      situation{counts: map[string]int32{"a": 1, "b": 1, "c": 1}, sets: []Copartition{{Topics: []string{"a", "b"}}, {Topics: []string{"c", "b"}}}, members: []joining{member("a b c", -1, ""), member("a b c", -1, "")}},
			active: "a/0 b/0 c/0 | ", standby: " | ",
		},
		{
			name:   "sets that share a table are one",
			s:      situation{counts: map[string]int32{"a": 1, "b": 1}, sets: []Copartition{{Topics: []string{"a"}, Tables: []string{"x"}}, {Topics: []string{"b"}, Tables: []string{"x"}}}, members: []joining{member("a b", -1, ""), member("a b", -1, "")}},
			active: "a/0 b/0 | ", standby: " | ",
		},
		{
			name: "numbers only one topic has", s: situation{counts: map[string]int32{"a": 1, "b": 3}, sets: ab, members: []joining{member("a b", -1, "")}},
			active: "a/0 b/0 b/1 b/2",
		},
		{
			name: "a joining member waits for what the old owner gives up",
			s: situation{generation: 6, counts: two, sets: ab, members: []joining{
				member("a b", 5, "a/0 a/1 b/0 b/1"), member("a b", -1, ""),
			}},
			active: "a/0 b/0 | ", standby: " | ",
		},
		{
			name: "and gets it then",
			s: situation{generation: 7, counts: two, sets: ab, members: []joining{
				member("a b", 6, "a/0 b/0"), member("a b", 6, ""),
			}},
			active: "a/0 b/0 | a/1 b/1", standby: " | ",
		},
		{
			name: "a topic found later joins its unit where that is",
			s: situation{generation: 6, counts: two, sets: ab, members: []joining{
				member("a b", 5, "a/1"), member("a b", 5, "a/0"),
			}},
			active: "a/1 b/1 | a/0 b/0", standby: " | ",
		},
		{
			name: "a topic found later waits until all know it",
			s: situation{generation: 6, counts: two, sets: ab, members: []joining{
				member("a b", 5, "a/1"), member("a", 5, "a/0"),
			}},
			active: "a/1 | a/0", standby: " | ", waiting: []string{"b"},
		},
		{
			name: "a topic the leader does not know waits",
			s: situation{leader: 1, counts: two, sets: ab, members: []joining{
				member("a b", 5, "a/1"), member("a", 5, "a/0"),
			}},
			active: "a/1 | a/0", standby: " | ", waiting: nil,
		},
		{
			name: "a unit that was split comes together in two rounds",
			s: situation{generation: 6, counts: map[string]int32{"a": 1, "b": 1}, sets: ab, members: []joining{
				member("a b", 5, "a/0"), member("a b", 5, "b/0"),
			}},
			active: "a/0 | ", standby: " | ",
		},
		{
			name: "a member of an old generation keeps nothing, not even what nobody else claims",
			s: situation{generation: 9, counts: two, sets: ab, members: []joining{
				member("a b", 5, "a/0 b/0 a/1 b/1"), member("a b", 8, "a/1 b/1"),
			}},
			active: " | a/1 b/1", standby: " | ",
		},
		{
			name: "a generation of the future is none of this group's",
			s: situation{generation: 9, counts: two, sets: ab, members: []joining{
				member("a b", 1<<30, "a/0 b/0 a/1 b/1"), member("a b", 8, "a/1 b/1"),
			}},
			active: " | a/1 b/1", standby: " | ",
		},
		{
			name: "claims of topics the member does not read, that do not exist, and of no possible number",
			s: situation{generation: 9, counts: two, sets: ab, members: []joining{
				member("a b", 8, "a/0 b/0"), member("z", 8, "a/1 y/1 a/-1 b/70"), member("a b", 8, ""),
			}},
			active: "a/0 b/0 |  | ", standby: " |  | ",
		},
		{
			name: "the warmest standby takes over",
			s: situation{generation: 9, counts: two, sets: ab, members: []joining{
				member("a b", 8, ""), member("a b", 8, "users/0@90 users/1@50"), member("a b", 8, "users/0@80 users/1@60"),
			}},
			active: " | a/0 b/0 | a/1 b/1", standby: " |  | ",
		},
		{
			name: "what moves to a new member is what it is warm for",
			s: situation{generation: 9, counts: map[string]int32{"a": 4}, sets: ab, members: []joining{
				member("a", 8, "a/0 a/1 a/2 a/3 users/0@5 users/1@5 users/2@5 users/3@5"), member("a", -1, "users/0@1 users/1@3 users/3@4"),
			}},
			active: "a/0 a/2 | ", standby: " | ",
		},
		{
			name: "no more moves than must, however warm it is elsewhere",
			s: situation{generation: 9, counts: map[string]int32{"a": 4}, sets: ab, members: []joining{
				member("a", 8, "a/0 a/1 a/2 users/0@5 users/1@5 users/2@5"), member("a", 8, "users/0@1 users/1@4 users/2@5"),
			}},
			active: "a/0 a/1 | a/3", standby: " | ",
		},
		{
			name: "copies are kept elsewhere",
			s: situation{generation: 9, counts: two, sets: ab, standbys: 1, members: []joining{
				member("a b", 8, "a/0 b/0"), member("a b", 8, "a/1 b/1"),
			}},
			active: "a/0 b/0 | a/1 b/1", standby: "users/1 | users/0",
		},
		{
			name: "copies stay where they are",
			s: situation{generation: 9, counts: two, sets: ab, standbys: 1, members: []joining{
				member("a b", 8, "a/0 b/0"), member("a b", 8, "a/1 b/1"), member("a b", 8, "users/0@1"), member("a b", 8, "users/1@1"),
			}},
			active: "a/0 b/0 | a/1 b/1 |  | ", standby: " |  | users/0 | users/1",
		},
		{
			name: "the copy of the next owner is kept until it takes over",
			s: situation{generation: 9, counts: two, sets: ab, standbys: 1, members: []joining{
				member("a b", 8, "a/0 b/0 a/1 b/1 users/0@9 users/1@9"), member("a b", 8, "users/0@9"),
			}},
			active: "a/1 b/1 | ", standby: " | users/0 users/1",
		},
		{
			name: "members that say nothing hold no copies, and nobody waits for them",
			s: situation{generation: 9, counts: two, sets: ab, standbys: 2, members: []joining{
				member("a b", 8, ""), foreign, unread,
			}},
			active: "a/0 b/0 | a/1 b/1 | ", standby: "users/1 |  | ",
		},
		{
			name: "sets of different readers",
			s: situation{leader: -1, counts: map[string]int32{"a": 2, "b": 2, "c": 2}, members: []joining{
				member("a", -1, ""), member("b c", -1, ""), member("c", -1, ""),
			}},
			active: "a/0 a/1 | b/0 b/1 | c/0 c/1", standby: " |  | ",
		},
		{
			name: "a unit goes over a third member where two read nothing in common",
			s: situation{leader: -1, generation: 9, counts: map[string]int32{"a": 4, "b": 2}, members: []joining{
				member("a", 8, "a/0 a/1 a/2 a/3"), member("a b", 8, "b/0 b/1"), member("b", 8, ""),
			}},
			active: "a/0 a/1 |  | ", standby: " |  | ",
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := assign(c.s)
			if d.actives() != c.active || d.standbys() != c.standby || !slices.Equal(d.waiting, c.waiting) {
				t.Errorf("active  %q\nwant    %q\nstandby %q\nwant    %q\nwaiting %v, want %v", d.actives(), c.active, d.standbys(), c.standby, d.waiting, c.waiting)
			}
			if again := assign(c.s); !reflect.DeepEqual(d, again) {
				t.Errorf("the same situation gave\n%+v and\n%+v", d, again)
			}
		})
	}
}

// simMember is a member as kgo runs it: it diffs each assignment against the one before, gives up what is missing, and
// joins again then.
type simMember struct {
	name   string
	topics map[string]bool
	gen    int32
	owned  map[record.Partition]bool
	stores map[TablePartition]int64
	copies []TablePartition
}

// sim is a group over its life.
type sim struct {
	*testing.T
	rng      *rand.Rand
	counts   map[string]int32 // of the topics that exist
	sets     []Copartition
	setOf    map[string]int
	standbys int
	gen      int32
	members  []*simMember
	names    int
	history  []string
	moves    *movement
}

type movement struct{ units, needed, copiesApart, rounds, events, roundsMax int }

func newSim(t *testing.T, seed uint64, moves *movement) *sim {
	s := &sim{T: t, rng: rand.New(rand.NewPCG(seed, 7)), counts: map[string]int32{}, setOf: map[string]int{}, moves: moves}
	s.standbys = s.rng.IntN(3)
	for i := range 1 + s.rng.IntN(4) {
		c := Copartition{}
		n := 1 + s.rng.Int32N(12)
		for j := range 1 + s.rng.IntN(3) {
			topic := fmt.Sprintf("t%d%d", i, j)
			c.Topics = append(c.Topics, topic)
			s.setOf[topic] = i
			if s.rng.IntN(5) > 0 {
				s.counts[topic] = max(1, n-s.rng.Int32N(4)/3)
			}
		}
		for j := range s.rng.IntN(3) {
			c.Tables = append(c.Tables, fmt.Sprintf("table%d%d", i, j))
		}
		s.sets = append(s.sets, c)
	}
	return s
}

func (s *sim) fail(format string, args ...any) {
	s.Helper()
	s.Fatalf("%s\nhistory: %s", fmt.Sprintf(format, args...), strings.Join(s.history, ", "))
}

func (s *sim) join() {
	s.names++
	m := &simMember{name: fmt.Sprintf("m%d", s.names), topics: map[string]bool{}, gen: -1, owned: map[record.Partition]bool{}, stores: map[TablePartition]int64{}}
	for t := range s.counts {
		m.topics[t] = true
	}
	for _, c := range s.sets { // stores left from an earlier life
		for _, t := range c.Tables {
			if s.rng.IntN(3) == 0 {
				m.stores[TablePartition{t, s.rng.Int32N(8)}] = s.rng.Int64N(1000)
			}
		}
	}
	s.members = slices.Insert(s.members, s.rng.IntN(len(s.members)+1), m)
}

// event changes the group, and tells whether all of it joins again at once.
func (s *sim) event() {
	what := "again"
	k := 0
	if len(s.members) > 0 {
		k = s.rng.IntN(len(s.members))
	}
	switch n := s.rng.IntN(10); {
	case n < 4 && len(s.members) < 9 || len(s.members) == 0:
		what = "join"
		s.join()
	case n < 6:
		what = "leave " + s.members[k].name
		s.members = slices.Delete(s.members, k, k+1)
	case n < 7 && len(s.members) > 1:
		// The others go on without it, for a generation or several; then it is back, believing what it did.
		what = "stale " + s.members[k].name
		m := s.members[k]
		s.members = slices.Delete(s.members, k, k+1)
		s.settle(false)
		if s.rng.IntN(2) == 0 && len(s.members) > 1 {
			s.members = slices.Delete(s.members, 0, 1)
		}
		s.members = append(s.members, m)
	case n < 9:
		for _, c := range s.sets {
			for _, t := range c.Topics {
				if s.counts[t] == 0 && s.rng.IntN(2) == 0 {
					what = "topic " + t
					s.counts[t] = 1 + s.rng.Int32N(8)
				}
			}
		}
	default:
		for _, t := range slices.Sorted(maps.Keys(s.counts)) {
			if s.rng.IntN(4) == 0 {
				what = "more partitions"
				s.counts[t] += s.rng.Int32N(4)
			}
		}
	}
	s.history = append(s.history, what)
}

// discovered lets some members find topics, and tells whether there are more to find.
func (s *sim) discovered() bool {
	more := false
	for _, m := range s.members {
		all := s.rng.IntN(2) == 0
		for t := range s.counts {
			if !m.topics[t] && all {
				m.topics[t] = true
			}
			more = more || !m.topics[t]
		}
	}
	return more
}

// settle runs rounds of joins until nobody has a reason to join again.
func (s *sim) settle(count bool) {
	quiet := true // nothing but the rebalance happens
	for rounds := 1; len(s.members) > 0; rounds++ {
		if rounds > 3 && quiet || rounds > 40 {
			s.fail("no end of rebalances")
		}
		known := 0
		for _, m := range s.members {
			known += len(m.topics)
		}
		more := s.discovered()
		quiet = quiet && known == len(s.members)*len(s.counts)
		again := s.round()
		if rounds > 1 && !again && !more {
			if count {
				s.moves.rounds += rounds
				s.moves.roundsMax = max(s.moves.roundsMax, rounds)
				s.moves.events++
			}
			return
		}
		if rounds > 1 && s.rng.IntN(10) == 0 { // somebody crashes in the middle
			k := s.rng.IntN(len(s.members))
			s.history = append(s.history, "crash "+s.members[k].name)
			quiet = false
			s.members = slices.Delete(s.members, k, k+1)
		}
	}
}

func (s *sim) situation() situation {
	sit := situation{generation: s.gen + 1, counts: map[string]int32{}, sets: s.sets, standbys: s.standbys}
	if len(s.members) > 0 {
		sit.leader = s.rng.IntN(len(s.members))
	}
	for _, m := range s.members {
		j := joining{topics: m.topics, generation: m.gen, ours: true}
		for p := range m.owned {
			j.owned = append(j.owned, p)
		}
		slices.SortFunc(j.owned, comparePartitions)
		for tp, o := range m.stores {
			j.state.Stores = append(j.state.Stores, Store{tp, o})
		}
		for t := range m.topics {
			sit.counts[t] = s.counts[t]
		}
		sit.members = append(sit.members, j)
	}
	return sit
}

type unitName struct {
	set    int
	number int32
}

func (s *sim) unit(p record.Partition) unitName { return unitName{s.setOf[p.Topic], p.Number} }

// round is one rebalance. It tells whether a member has something to give up and joins again.
func (s *sim) round() (again bool) {
	sit := s.situation()
	d := assign(sit)
	s.gen++
	newest := int32(-1)
	for _, m := range s.members {
		newest = max(newest, m.gen)
	}
	// What is given must be held by nobody: any member may still be at work on what it claims.
	type held struct {
		by int
		p  record.Partition
	}
	before := map[unitName][]held{}
	for i, m := range s.members {
		for p := range m.owned {
			if p.Number < s.counts[p.Topic] && d.readable(sit, p) {
				before[s.unit(p)] = append(before[s.unit(p)], held{i, p})
			}
		}
	}
	holders := map[unitName]int{}
	for i := range s.members {
		for _, p := range d.active[i] {
			u := s.unit(p)
			if h, ok := holders[u]; ok && h != i {
				s.fail("%v is split: members %d and %d", u, h, i)
			}
			holders[u] = i
			if s.members[i].owned[p] {
				if s.members[i].gen != newest {
					s.fail("%s keeps %v of an old generation", s.members[i].name, p)
				}
				continue
			}
			for _, h := range before[u] {
				if h.by != i || h.p == p {
					s.fail("%v is given to %s while %s has %v", p, s.members[i].name, s.members[h.by].name, h.p)
				}
			}
		}
	}
	for i, m := range s.members {
		now := map[record.Partition]bool{}
		for _, p := range d.active[i] {
			if now[p] {
				s.fail("%v is assigned twice to %s", p, m.name)
			}
			now[p] = true
		}
		seen := map[TablePartition]bool{}
		for _, c := range d.standby[i] {
			if seen[c] {
				s.fail("two copies of %v on %s", c, m.name)
			}
			seen[c] = true
			set := slices.IndexFunc(s.sets, func(x Copartition) bool { return slices.Contains(x.Tables, c.Table) })
			u := unitName{set, c.Number}
			if slices.ContainsFunc(before[u], func(h held) bool { return h.by == i }) {
				s.fail("%s stands by for %v, which it has", m.name, c)
			}
			if h, ok := holders[u]; ok && h == i {
				s.fail("%s stands by for %v, which it gets", m.name, c)
			}
		}
		for p := range m.owned {
			again = again || !now[p]
		}
		m.owned, m.gen, m.copies = now, s.gen, d.standby[i]
		for p := range now {
			for _, t := range s.sets[s.setOf[p.Topic]].Tables {
				m.stores[TablePartition{t, p.Number}] = int64(s.gen) * 1000
			}
		}
		for _, c := range d.standby[i] {
			m.stores[c] = int64(s.gen)*1000 - s.rng.Int64N(500)
		}
	}
	for table, owners := range d.owners {
		set := slices.IndexFunc(s.sets, func(x Copartition) bool { return slices.Contains(x.Tables, table) })
		for n, owner := range owners {
			h, ok := holders[unitName{set, int32(n)}]
			if owner >= 0 && (!ok || int32(h) != owner) {
				s.fail("%s/%d is told to be owned by %d", table, n, owner)
			}
		}
	}
	return again
}

// readable tells whether the decision takes the topic in at all.
func (d decision) readable(sit situation, p record.Partition) bool {
	return !slices.Contains(d.waiting, p.Topic) && sit.members[sit.leader].topics[p.Topic]
}

// settled checks a group in which everybody knows everything.
func (s *sim) settled() {
	sit := s.situation()
	d := assign(sit)
	if d.moving > 0 || len(d.waiting) > 0 {
		s.fail("at rest, %d units move and topics %v wait", d.moving, d.waiting)
	}
	got := map[record.Partition]int{}
	for i, m := range s.members {
		if len(d.active[i]) != len(m.owned) {
			s.fail("at rest, %s would get %v and has %v", m.name, d.active[i], m.owned)
		}
		for _, p := range d.active[i] {
			got[p]++
			if !m.owned[p] {
				s.fail("at rest, %v goes to %s", p, m.name)
			}
		}
	}
	want := 0
	for t, n := range s.counts {
		want += int(n)
		for i := range n {
			if got[record.Partition{Topic: t, Number: i}] != 1 {
				s.fail("%s/%d is assigned %d times", t, i, got[record.Partition{Topic: t, Number: i}])
			}
		}
	}
	if len(got) != want {
		s.fail("%d partitions assigned, there are %d", len(got), want)
	}
	total := make([]int, len(s.members))
	inSet := make([][]int, len(s.sets))
	for i := range inSet {
		inSet[i] = make([]int, len(s.members))
	}
	for i, m := range s.members {
		units := map[unitName]bool{}
		for p := range m.owned {
			units[s.unit(p)] = true
		}
		total[i] = len(units)
		for u := range units {
			inSet[u.set][i]++
		}
	}
	if slices.Max(total)-slices.Min(total) > 1 {
		s.fail("units by member: %v", total)
	}
	standby := make([]int, len(s.members)) // units
	for i, of := range inSet {
		if slices.Max(of)-slices.Min(of) > 2 {
			s.fail("units of set %d by member: %v", i, of)
		}
		sum := 0
		for _, n := range of {
			sum += n
		}
		for k, t := range s.sets[i].Tables {
			for n := range sum {
				copies := 0
				for j := range s.members {
					if slices.Contains(d.standby[j], TablePartition{t, int32(n)}) {
						copies++
						if k == 0 {
							standby[j]++
						}
					}
				}
				if copies != min(s.standbys, len(s.members)-1) {
					s.fail("%s/%d has %d copies, wanted %d of %d members", t, n, copies, s.standbys, len(s.members))
				}
			}
		}
	}
	for from := range s.members {
		for to, m := range s.members {
			if standby[from]-standby[to] < 2 {
				continue
			}
			for _, c := range d.standby[from] {
				set := slices.IndexFunc(s.sets, func(x Copartition) bool { return slices.Contains(x.Tables, c.Table) })
				owns := slices.ContainsFunc(s.sets[set].Topics, func(t string) bool { return m.owned[record.Partition{Topic: t, Number: c.Number}] })
				if !owns && !slices.Contains(d.standby[to], c) {
					s.fail("copies by member are %v, and that of %v could move", standby, c)
				}
			}
		}
	}
	s.moves.copiesApart = max(s.moves.copiesApart, slices.Max(standby)-slices.Min(standby))
}

// moved counts the units that change hands in the next decision, and how many must in any decision that is balanced.
func (s *sim) moved() (units, needed int) {
	a := &assignor{situation: s.situation()}
	a.group()
	a.claim()
	a.warm()
	a.balance()
	has := make([]int, len(s.members))
	for _, u := range a.units {
		if u.owner >= 0 {
			has[u.owner]++
			if u.owner != u.target {
				units++
			}
		}
	}
	slices.Sort(has)
	for i, n := range slices.Backward(has) {
		share := len(a.units) / len(has)
		if len(has)-1-i < len(a.units)%len(has) {
			share++ // those with the most may have one more
		}
		needed += max(0, n-share)
	}
	return units, needed
}

// Whatever joins, leaves, crashes, comes back or is created: no partition has two owners at any moment, no unit is split,
// nobody goes on from an old generation, and the group comes to rest, balanced, in few rounds.
func TestAssignSimulation(t *testing.T) {
	seeds := uint64(3000)
	if testing.Short() {
		seeds = 200
	}
	var moves movement
	for seed := range seeds {
		s := newSim(t, seed, &moves)
		s.history = append(s.history, fmt.Sprintf("seed %d", seed))
		for range 1 + s.rng.IntN(12) {
			s.event()
			if len(s.members) == 0 {
				continue
			}
			units, needed := s.moved()
			moves.units, moves.needed = moves.units+units, moves.needed+needed
			if len(s.sets) == 1 && units > needed {
				s.fail("%d units move, %d would have been enough", units, needed)
			}
			s.settle(true)
			if len(s.members) > 0 {
				s.settled()
			}
		}
	}
	// Only the balance within a set can cost more than the least, and that is rare.
	if moves.units > moves.needed+moves.needed/1000 {
		t.Errorf("%d units moved, %d would have been enough", moves.units, moves.needed)
	}
	t.Logf("%d events, %d rounds, at most %d for one; %d units moved, %d at least; copies differ by %d", moves.events, moves.rounds, moves.roundsMax, moves.units, moves.needed, moves.copiesApart)
}
