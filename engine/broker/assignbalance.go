package broker

import (
	"cmp"
	"slices"
)

// shares is how many units of each set each member is to have.
type shares struct {
	of    [][]int // by member and set
	total []int   // by member
	sets  []set
}

func (h *shares) add(member, set, n int) {
	h.of[member][set] += n
	h.total[member] += n
}

// balance gives each unit its target: first how many units of each set a member is to have, then which.
func (a *assignor) balance() {
	h := &shares{sets: a.sets, total: make([]int, len(a.members))}
	for range a.members {
		h.of = append(h.of, make([]int, len(a.sets)))
	}
	for _, u := range a.units {
		if u.owner >= 0 {
			h.add(u.owner, u.set, 1)
		}
	}
	for s := range a.sets {
		a.shareFree(h, s)
	}
	for h.level() {
	}
	for s := range a.sets {
		for h.spread(s) {
		}
	}
	for s := range a.sets {
		a.choose(s, func(member int) int { return h.of[member][s] })
	}
}

// shareFree gives the units of a set that nobody owns to those with the fewest units; among these to whoever is warm for
// one, then to whoever has the fewest of the set.
func (a *assignor) shareFree(h *shares, s int) {
	free := 0
	warm := make([]int, len(a.members))
	for _, u := range a.unitsOf(s) {
		if u.owner < 0 {
			free++
			for _, w := range u.warm {
				warm[w.member]++
			}
		}
	}
	for range free {
		best := -1
		for i, ok := range a.sets[s].eligible {
			if ok && (best < 0 || cmp.Or(
				cmp.Compare(h.total[i], h.total[best]),
				-cmp.Compare(min(warm[i], 1), min(warm[best], 1)),
				cmp.Compare(h.of[i][s], h.of[best][s])) < 0) {
				best = i
			}
		}
		h.add(best, s, 1)
		warm[best] = max(warm[best]-1, 0)
	}
}

// level moves one unit from a member with many to one with at least two fewer, and tells whether there was such a pair. It
// goes over other members where the two read no set in common.
func (h *shares) level() bool {
	order := make([]int, len(h.total)) // fewest first
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(h.total[x], h.total[y]) })
	if len(order) == 0 {
		return false
	}
	for _, from := range slices.Backward(order) {
		if h.total[from]-h.total[order[0]] < 2 {
			return false
		}
		before := map[int]int{from: from} // how a member was reached
		queue := []int{from}
		to := -1
		for len(queue) > 0 && (to < 0 || h.total[to] > h.total[order[0]]) {
			x := queue[0]
			queue = queue[1:]
			for _, y := range order {
				if _, seen := before[y]; seen || h.between(x, y) < 0 {
					continue
				}
				before[y] = x
				queue = append(queue, y)
				if to < 0 || h.total[y] < h.total[to] {
					to = y
				}
				if h.total[to] == h.total[order[0]] {
					break
				}
			}
		}
		if to < 0 || h.total[from]-h.total[to] < 2 {
			continue
		}
		for y := to; y != from; y = before[y] {
			s := h.between(before[y], y)
			h.add(before[y], s, -1)
			h.add(y, s, 1)
		}
		return true
	}
	return false
}

// between is the set of which x has the most more than y, and y may have; -1: none.
func (h *shares) between(x, y int) int {
	best := -1
	for s := range h.sets {
		if h.of[x][s] > 0 && h.sets[s].eligible[y] &&
			(best < 0 || h.of[x][s]-h.of[y][s] > h.of[x][best]-h.of[y][best]) {
			best = s
		}
	}
	return best
}

// spread exchanges two units between the members with the most and the fewest of a set, if they differ by more than two,
// and tells whether it did. Each exchange makes the squares of all shares smaller, so there is an end.
func (h *shares) spread(s int) bool {
	most, fewest := -1, -1
	for i, ok := range h.sets[s].eligible {
		if !ok {
			continue
		}
		if most < 0 || h.of[i][s] > h.of[most][s] {
			most = i
		}
		if fewest < 0 || h.of[i][s] < h.of[fewest][s] {
			fewest = i
		}
	}
	if most < 0 || h.of[most][s]-h.of[fewest][s] <= 2 {
		return false
	}
	back := h.between(fewest, most)
	switch {
	case h.total[most] == h.total[fewest]+1: // no exchange is needed
	case back < 0 || h.of[fewest][back] <= h.of[most][back]:
		return false
	default:
		h.add(fewest, back, -1)
		h.add(most, back, 1)
	}
	h.add(most, s, -1)
	h.add(fewest, s, 1)
	return true
}

// choose decides which units of a set each member has, given how many: those it owns; what is missing, and what others
// have to give up, with the smallest lag.
func (a *assignor) choose(s int, share func(member int) int) {
	units := a.unitsOf(s)
	room := make([]int, len(a.members)) // negative: so many are to be given up
	for i := range room {
		room[i] = share(i)
	}
	for i := range units {
		u := &units[i]
		u.target = u.owner
		if u.owner >= 0 {
			room[u.owner]--
		}
	}
	type move struct {
		unit *unit
		to   warmth
	}
	var moves []move
	for i := range units {
		if u := &units[i]; u.owner < 0 || room[u.owner] < 0 {
			for _, w := range u.warm {
				if room[w.member] > 0 {
					moves = append(moves, move{u, w})
				}
			}
		}
	}
	slices.SortStableFunc(moves, func(x, y move) int { // units without an owner first: they go somewhere in any case
		return cmp.Or(cmp.Compare(min(x.unit.owner, 0), min(y.unit.owner, 0)), cmp.Compare(x.to.lag, y.to.lag))
	})
	for _, m := range moves {
		u := m.unit
		if u.target != u.owner || room[m.to.member] <= 0 || u.owner >= 0 && room[u.owner] >= 0 {
			continue
		}
		u.target = m.to.member
		room[m.to.member]--
		if u.owner >= 0 {
			room[u.owner]++
		}
	}
	for i := range slices.Backward(units) { // a member keeps the first of its units
		if u := &units[i]; u.owner >= 0 && u.target == u.owner && room[u.owner] < 0 {
			room[u.owner]++
			u.target = -1
		}
	}
	to := 0
	for i := range units {
		if u := &units[i]; u.target < 0 {
			for room[to] <= 0 {
				to++
			}
			u.target = to
			room[to]--
		}
	}
}

func (a *assignor) unitsOf(s int) []unit {
	first := a.sets[s].first
	return a.units[first : first+int(a.sets[s].count)]
}
