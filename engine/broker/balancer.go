package broker

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"kaspr.io/kaspr/engine/record"
)

// copartition is the group protocol of the members (kgo.GroupBalancer): the leader's side of it, which assigns, and each
// member's, which says what it has and learns what it got.
//
// It is cooperative. A group cannot go over to it from another protocol member by member: Kafka refuses a member that
// shares no protocol with the others.
type copartition struct {
	opts  Options
	asked atomic.Uint32 // rebalances wanted by this member (Member.Rebalance)

	mu       sync.Mutex
	said     Peer       // guarded by mu; in the last join
	received *Placement // guarded by mu; of the last assignment, nil when taken
}

// ProtocolName is the name members agree on. A change of what they say to each other that older ones misunderstand needs
// another name.
func (*copartition) ProtocolName() string { return "kaspr-copartition" }

// IsCooperative says that members keep what they have during a rebalance.
func (*copartition) IsCooperative() bool { return true }

// JoinGroupMetadata is what this member says.
func (b *copartition) JoinGroupMetadata(interests []string, owned map[string][]int32, generation int32) []byte {
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Version, meta.Topics, meta.Generation = 3, interests, generation
	for topic, numbers := range owned {
		p := kmsg.NewConsumerMemberMetadataOwnedPartition()
		p.Topic, p.Partitions = topic, numbers
		meta.OwnedPartitions = append(meta.OwnedPartitions, p)
	}
	slices.SortFunc(meta.OwnedPartitions, func(x, y kmsg.ConsumerMemberMetadataOwnedPartition) int {
		return cmp.Compare(x.Topic, y.Topic)
	})
	var state MemberState
	if b.opts.UserData != nil {
		state = b.opts.UserData()
	}
	b.mu.Lock()
	b.said = Peer{state.Instance, state.Address}
	b.mu.Unlock()
	meta.UserData = appendState(nil, state, b.asked.Load())
	return meta.AppendTo(nil)
}

// ParseSyncAssignment is what this member got. The placement waits for take: the handler is not called from here, where
// the client is not ready to give partitions up yet.
func (b *copartition) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	topics, err := kgo.ParseConsumerSyncAssignment(assignment)
	if err != nil {
		return nil, err
	}
	var got kmsg.ConsumerMemberAssignment
	var p Placement
	if err := got.ReadFrom(assignment); err == nil {
		if p, err = parsePlacement(got.UserData); err != nil {
			b.opts.Log.Warn("the group's leader said nothing readable about standby copies and owners", "err", err)
		}
	}
	b.mu.Lock()
	b.received = &p
	b.mu.Unlock()
	return topics, nil
}

// take is the placement of the last assignment, once.
func (b *copartition) take() (Placement, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.received
	b.received = nil
	if p == nil {
		return Placement{}, false
	}
	return *p, true
}

// named tells whether the placement knows this member by what it said.
func (b *copartition) named(p Placement) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.said == Peer{} || slices.Contains(p.Peers, b.said)
}

// MemberBalancer reads what the members said. One that nobody can read subscribes to nothing, so gets nothing; it does
// not keep the others from their work.
func (b *copartition) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	members = slices.Clone(members)
	nothing := kmsg.NewConsumerMemberMetadata()
	for i := range members {
		var meta kmsg.ConsumerMemberMetadata
		if err := meta.ReadFrom(members[i].ProtocolMetadata); err != nil {
			b.opts.Log.Warn("a member of the group cannot be understood and gets nothing", "member", members[i].MemberID, "err", err)
			members[i].ProtocolMetadata = nothing.AppendTo(nil)
		}
	}
	cb, err := kgo.NewConsumerBalancer(b, members)
	return cb, cb.MemberTopics(), err
}

// Balance assigns, as the leader of the group.
func (b *copartition) Balance(cb *kgo.ConsumerBalancer, counts map[string]int32) kgo.IntoSyncAssignment {
	s := situation{leader: -1, generation: cb.Info().Generation, counts: counts, standbys: b.opts.Standbys}
	if b.opts.Copartition != nil {
		s.sets = b.opts.Copartition()
	}
	r := rebalance{}
	cb.EachMember(func(m *kmsg.JoinGroupResponseMember, meta *kmsg.ConsumerMemberMetadata) {
		if m.MemberID == cb.Info().LeaderID {
			s.leader = len(s.members)
		}
		r.ids = append(r.ids, m.MemberID)
		s.members = append(s.members, b.joining(m.MemberID, meta))
	})
	for _, m := range s.members {
		r.states = append(r.states, m.state)
	}
	r.decision = assign(s)
	b.opts.Log.Debug("partitions of the group assigned", "members", len(r.ids), "moving", r.moving, "waiting", r.waiting)
	return r
}

// joining is a member's metadata as the decision takes it.
func (b *copartition) joining(id string, meta *kmsg.ConsumerMemberMetadata) joining {
	m := joining{topics: make(map[string]bool, len(meta.Topics)), generation: meta.Generation}
	for _, t := range meta.Topics {
		m.topics[t] = true
	}
	seen := map[record.Partition]bool{}
	for _, o := range meta.OwnedPartitions {
		for _, n := range o.Partitions {
			if p := (record.Partition{Topic: o.Topic, Number: n}); !seen[p] {
				seen[p] = true
				m.owned = append(m.owned, p)
			}
		}
	}
	state, err := parseState(meta.UserData)
	if err != nil {
		b.opts.Log.Warn("what a member of the group says about its stores cannot be read", "member", id, "err", err)
		return m
	}
	m.state, m.ours = state, true
	return m
}

// rebalance is a decision on its way to the members (kgo.IntoSyncAssignment).
type rebalance struct {
	decision
	ids    []string
	states []MemberState
}

// IntoSyncAssignment is each member's part as bytes.
func (r rebalance) IntoSyncAssignment() []kmsg.SyncGroupRequestGroupAssignment {
	var peers []Peer
	peerOf := make([]int32, len(r.ids))
	for i, s := range r.states {
		peerOf[i] = -1
		if s.Instance != "" || s.Address != "" {
			peerOf[i] = int32(len(peers))
			peers = append(peers, Peer{s.Instance, s.Address})
		}
	}
	for _, owners := range r.owners {
		for n, m := range owners {
			if m >= 0 {
				owners[n] = peerOf[m]
			}
		}
	}
	shared, index := appendShared(nil, peers, r.owners)
	var all []kmsg.SyncGroupRequestGroupAssignment
	for i, id := range r.ids {
		var a kmsg.ConsumerMemberAssignment
		for _, p := range r.active[i] { // sorted by topic and number
			if n := len(a.Topics); n == 0 || a.Topics[n-1].Topic != p.Topic {
				t := kmsg.NewConsumerMemberAssignmentTopic()
				t.Topic = p.Topic
				a.Topics = append(a.Topics, t)
			}
			t := &a.Topics[len(a.Topics)-1]
			t.Partitions = append(t.Partitions, p.Number)
		}
		a.UserData = appendPlacement(nil, shared, index, r.standby[i])
		sa := kmsg.NewSyncGroupRequestGroupAssignment()
		sa.MemberID, sa.MemberAssignment = id, a.AppendTo(nil)
		all = append(all, sa)
	}
	return all
}
