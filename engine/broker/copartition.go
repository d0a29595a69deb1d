package broker

// Copartition is topics whose partitions of one number belong to one member, and the tables that member keeps beside
// them. What belongs together through a third one (two sets that name the same topic or table) is one set.
type Copartition struct {
	Topics []string
	Tables []string
}

// TablePartition names one partition of a table. It has as many as the topics of its set have at most.
type TablePartition struct {
	Table  string
	Number int32
}

// MemberState is what a member tells the group when it joins.
type MemberState struct {
	Instance string // who it is, over restarts; at most 255 bytes
	Address  string // under which its HTTP server is reached; at most 1023 bytes
	// Stores are the table partitions it holds a store of, active, standby or left from before. Those of global tables do
	// not belong here: every member has them. What is beyond 16,384 stores is not told.
	Stores []Store
}

// Store is how far a member's copy of a table partition is.
type Store struct {
	TablePartition
	Offset int64 // of the changelog, the next one to apply
}

// Peer is a member as others reach it: what it said in its MemberState.
type Peer struct {
	Instance string
	Address  string
}

// Placement is what the leader decided beside the partitions. Everything in it is the receiver's.
type Placement struct {
	// Standbys are the copies this member is to keep warm. It is never the owner of one.
	Standbys []TablePartition
	// Peers are the members that said who they are, this one included.
	Peers []Peer
	// Owners is, by table and number, the index into Peers of the one that owns the table partition; -1 while nobody does,
	// such as between two owners.
	Owners map[string][]int32
}

// Owner is who owns a table partition, if anyone does who said who he is.
func (p Placement) Owner(t TablePartition) (Peer, bool) {
	owners := p.Owners[t.Table]
	if t.Number < 0 || int(t.Number) >= len(owners) || owners[t.Number] < 0 {
		return Peer{}, false
	}
	return p.Peers[owners[t.Number]], true
}
