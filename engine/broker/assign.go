package broker

import (
	"cmp"
	"math"
	"slices"

	"kaspr.io/kaspr/engine/record"
)

// The decision of the group's leader, as a function of values.
//
// A unit is one partition number of one co-partition set: the partitions of that number of all its topics, and of its
// tables. Rules, the first ones first:
//
//   - All of a unit belongs to one member, at every moment. So a unit moves in two rounds: its old owner gives it up, joins
//     again, and only then the new owner gets it.
//   - A claim counts if its member was part of the group's last generation. Any other is from before a time in which
//     somebody else may have gone on: the partition is given up first, also if it comes back to the same member,
//     which must not continue from the position it remembers.
//   - The units of any two members differ by one at most; within one set by two at most.
//   - Units stay where they are, as far as that allows.
//   - A unit that must move goes where a warm store of its tables is.
//   - The same situation gives the same decision.

// joining is what the leader knows of a member.
type joining struct {
	topics     map[string]bool // it subscribes to; only these are given to it
	generation int32           // the last one it was part of; -1: none
	owned      []record.Partition
	state      MemberState
	ours       bool // the state was readable
}

// situation is what a decision is made of.
type situation struct {
	members    []joining // in an order that does not depend on who leads
	leader     int       // only topics it subscribes to are assigned, because it knows the sets of no others; -1: all
	generation int32     // the one being made; 0: not known
	counts     map[string]int32
	sets       []Copartition
	standbys   int // copies of a table partition beside its owner's
}

// decision is by member, in the order of situation.members.
type decision struct {
	active  [][]record.Partition
	standby [][]TablePartition
	owners  map[string][]int32 // by table and number: a member, or -1
	moving  int                // units that somebody must give up first
	waiting []string           // topics that are not assigned until every member knows them
}

// set is a co-partition set with its units: numbers 0 to count-1.
type set struct {
	topics   []string
	tables   []string
	count    int32
	eligible []bool // by member: it subscribes to all of the topics
	first    int    // index of the first unit
}

// unit is one number of a set.
type unit struct {
	set    int
	number int32
	owner  int // the member that has it now; -1: nobody who could keep it
	target int // the member that is to have it
	claims []claim
	warm   []warmth // members with a store of one of its tables, the best first
}

// claim is a member's word that it owns a partition of the unit.
type claim struct {
	member int
	topic  string
	valid  bool
}

// warmth is how much of the changelogs a member lacks for a unit.
type warmth struct {
	member int
	lag    uint64
}

// assignor makes one decision.
type assignor struct {
	situation
	sets  []set
	units []unit
}

func assign(s situation) decision {
	a := &assignor{situation: s}
	var d decision
	d.waiting = a.group()
	a.claim()
	a.warm()
	a.balance()
	d.moving = a.settle(&d)
	a.standBy(&d)
	return d
}

// group makes the sets and their units. It returns the topics that wait: a topic that is new to a set which members
// already read is left out until all of these know it, or the set would move to the few that do and back again.
func (a *assignor) group() (waiting []string) {
	claimed := map[string]bool{}
	for _, m := range a.members {
		for _, p := range m.owned {
			claimed[p.Topic] = true
		}
	}
	for _, c := range a.merged() {
		c.Topics = slices.DeleteFunc(c.Topics, func(t string) bool { return a.counts[t] <= 0 || !a.known(t) })
		var readers []joining
		for _, m := range a.members {
			if m.ours && slices.ContainsFunc(c.Topics, func(t string) bool { return m.topics[t] }) {
				readers = append(readers, m)
			}
		}
		s := set{tables: c.Tables, first: len(a.units), eligible: make([]bool, len(a.members))}
		for _, t := range c.Topics {
			if !claimed[t] && slices.ContainsFunc(readers, func(m joining) bool { return !m.topics[t] }) {
				waiting = append(waiting, t)
				continue
			}
			s.topics = append(s.topics, t)
			s.count = max(s.count, a.counts[t])
		}
		for i, m := range a.members {
			s.eligible[i] = !slices.ContainsFunc(s.topics, func(t string) bool { return !m.topics[t] })
		}
		if len(s.topics) == 0 || !slices.Contains(s.eligible, true) {
			waiting = append(waiting, s.topics...)
			continue
		}
		for n := range s.count {
			a.units = append(a.units, unit{set: len(a.sets), number: n, owner: -1, target: -1})
		}
		a.sets = append(a.sets, s)
	}
	slices.Sort(waiting)
	return waiting
}

// known tells whether the topic's set is known, and somebody reads it.
func (a *assignor) known(topic string) bool {
	if a.leader >= 0 {
		return a.members[a.leader].topics[topic]
	}
	return slices.ContainsFunc(a.members, func(m joining) bool { return m.topics[topic] })
}

// merged is the sets without overlaps, and one for each topic that is in none. Names and sets are sorted.
func (a *assignor) merged() []Copartition {
	type name struct {
		table bool
		text  string
	}
	root := map[name]name{}
	find := func(n name) name {
		for root[n] != n {
			n = root[n]
		}
		return n
	}
	for t := range a.counts {
		root[name{false, t}] = name{false, t}
	}
	for _, c := range a.situation.sets {
		var names []name
		for _, t := range c.Topics {
			names = append(names, name{false, t})
		}
		for _, t := range c.Tables {
			names = append(names, name{true, t})
		}
		for _, n := range names {
			if _, seen := root[n]; !seen {
				root[n] = n
			}
			root[find(n)] = find(names[0])
		}
	}
	sets := map[name]*Copartition{}
	for n := range root {
		s := sets[find(n)]
		if s == nil {
			s = &Copartition{}
			sets[find(n)] = s
		}
		if n.table {
			s.Tables = append(s.Tables, n.text)
		} else {
			s.Topics = append(s.Topics, n.text)
		}
	}
	var all []Copartition
	for _, s := range sets {
		slices.Sort(s.Topics)
		slices.Sort(s.Tables)
		if len(s.Topics) > 0 {
			all = append(all, *s)
		}
	}
	slices.SortFunc(all, func(x, y Copartition) int { return cmp.Compare(x.Topics[0], y.Topics[0]) })
	return all
}

// claim notes who claims which units, and who owns them.
func (a *assignor) claim() {
	current := int32(-1)
	for _, m := range a.members {
		if a.generation <= 0 || m.generation < a.generation { // else it is not of this group's past
			current = max(current, m.generation)
		}
	}
	setOf := map[string]int{}
	for i, s := range a.sets {
		for _, t := range s.topics {
			setOf[t] = i
		}
	}
	for i, m := range a.members {
		for _, p := range m.owned {
			s, ok := setOf[p.Topic]
			if !ok || p.Number < 0 || p.Number >= a.counts[p.Topic] {
				continue // nobody is to have it, so nobody waits for it
			}
			u := &a.units[a.sets[s].first+int(p.Number)]
			u.claims = append(u.claims, claim{i, p.Topic, m.generation == current})
		}
	}
	for i := range a.units {
		u := &a.units[i]
		most := 0
		for _, c := range u.claims {
			n := 0
			for _, d := range u.claims {
				if d.member == c.member && d.valid {
					n++
				}
			}
			if n > most && a.sets[u.set].eligible[c.member] {
				u.owner, most = c.member, n
			}
		}
	}
}

// warm notes who has stores of which units' tables. How much a store lacks is measured against the farthest one.
func (a *assignor) warm() {
	type place struct{ set, index int }
	places := map[string]place{}
	for i, s := range a.sets {
		for j, t := range s.tables {
			places[t] = place{i, j}
		}
	}
	type holder struct{ unit, member int }
	offsets := map[holder][]int64{} // by table of the set
	ends := map[int][]int64{}       // by unit
	for i, m := range a.members {
		for _, st := range m.state.Stores {
			at, ok := places[st.Table]
			if !ok || st.Number < 0 || st.Number >= a.sets[at.set].count || !a.sets[at.set].eligible[i] {
				continue
			}
			u, n := a.sets[at.set].first+int(st.Number), len(a.sets[at.set].tables)
			h := holder{u, i}
			if offsets[h] == nil {
				offsets[h] = make([]int64, n)
			}
			if ends[u] == nil {
				ends[u] = make([]int64, n)
			}
			offsets[h][at.index] = max(offsets[h][at.index], st.Offset)
			ends[u][at.index] = max(ends[u][at.index], st.Offset)
		}
	}
	for h, at := range offsets {
		var lag uint64
		for j, end := range ends[h.unit] {
			if d := uint64(end - at[j]); d <= math.MaxUint64-lag {
				lag += d
			} else {
				lag = math.MaxUint64
			}
		}
		a.units[h.unit].warm = append(a.units[h.unit].warm, warmth{h.member, lag})
	}
	for i := range a.units {
		slices.SortFunc(a.units[i].warm, func(x, y warmth) int {
			return cmp.Or(cmp.Compare(x.lag, y.lag), cmp.Compare(x.member, y.member))
		})
	}
}

// settle turns targets into what each member gets in this round.
func (a *assignor) settle(d *decision) (moving int) {
	d.active = make([][]record.Partition, len(a.members))
	d.owners = map[string][]int32{}
	for _, s := range a.sets {
		for _, t := range s.tables {
			d.owners[t] = make([]int32, s.count)
		}
	}
	for i := range a.units {
		u := &a.units[i]
		s := &a.sets[u.set]
		// Whoever claims a part may be working on it still. As long as one claim is not the target's own, and of now, the
		// target gets nothing it does not have.
		blocked := slices.ContainsFunc(u.claims, func(c claim) bool { return c.member != u.target || !c.valid })
		for _, t := range s.topics {
			has := slices.Contains(u.claims, claim{u.target, t, true})
			if u.number < a.counts[t] && (has || !blocked) {
				d.active[u.target] = append(d.active[u.target], record.Partition{Topic: t, Number: u.number})
			}
		}
		owner := int32(u.target)
		if blocked {
			moving++
			if u.owner != u.target {
				owner = -1
			}
		}
		for _, t := range s.tables {
			d.owners[t][u.number] = owner
		}
	}
	for _, ps := range d.active {
		slices.SortFunc(ps, comparePartitions)
	}
	return moving
}
