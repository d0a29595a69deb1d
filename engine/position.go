package engine

import (
	"hash/fnv"
	"strconv"
	"strings"

	"kaspr.io/kaspr/engine/broker"
)

// The group stores one offset for each partition, but several agents may read it, at different speeds. The offset is that of the
// slowest, so that nothing is lost; its metadata says how far the others are ahead, so that nothing is done twice:
//
//	kaspr1 HASH=AHEAD ... !
//
// HASH is the agent's name (FNV-1a, 64 bits), AHEAD the number of offsets, both in base 36. An agent that is not named begins at
// the offset, but for one that reads from the start whoever has been there before it: that one is always named. The mark at the end is there or not, to tell a position from the same one before it. Brokers keep 4096 bytes of metadata by default (offset.metadata.max.bytes), enough for about 200 agents.

// progress is how far an agent came in a partition: the next offset it is to process, -1 when that is not known.
type progress struct {
	agent string
	next  int64
	named bool // always, wherever it is
}

const positionMagic = "kaspr1"

// positionOf is what to store for a partition; nothing while it is not known where one of its readers begins.
func positionOf(readers []progress) (broker.Position, bool) {
	least := int64(-1)
	for _, r := range readers {
		if r.next < 0 {
			return broker.Position{}, false
		}
		if least < 0 || r.next < least {
			least = r.next
		}
	}
	if least < 0 {
		return broker.Position{}, false
	}
	at := broker.Position{Offset: least}
	for _, r := range readers {
		if ahead := r.next - least; ahead > 0 || r.named {
			if at.Metadata == "" {
				at.Metadata = positionMagic
			}
			at.Metadata += " " + nameHash(r.agent) + "=" + strconv.FormatInt(ahead, 36)
		}
	}
	return at, true
}

const positionMark = " !"

// marked is the same position, but not equal.
func marked(at broker.Position) broker.Position {
	if plain := unmarked(at); plain != at {
		return plain
	}
	if at.Metadata == "" {
		at.Metadata = positionMagic
	}
	at.Metadata += positionMark
	return at
}

// unmarked is the position as positionOf makes it.
func unmarked(at broker.Position) broker.Position {
	at.Metadata = strings.TrimSuffix(at.Metadata, positionMark)
	if at.Metadata == positionMagic {
		at.Metadata = ""
	}
	return at
}

// nextOf is where an agent goes on, and whether it is named. Metadata that somebody else wrote counts as none.
func nextOf(at broker.Position, agent string) (next int64, named bool) {
	fields := strings.Fields(at.Metadata)
	if len(fields) == 0 || fields[0] != positionMagic {
		return at.Offset, false
	}
	hash := nameHash(agent)
	for _, f := range fields[1:] {
		if name, ahead, ok := strings.Cut(f, "="); ok && name == hash {
			if n, err := strconv.ParseInt(ahead, 36, 64); err == nil && n >= 0 && at.Offset+n >= at.Offset {
				return at.Offset + n, true
			}
		}
	}
	return at.Offset, false
}

func nameHash(agent string) string {
	h := fnv.New64a()
	h.Write([]byte(agent))
	return strconv.FormatUint(h.Sum64(), 36)
}
