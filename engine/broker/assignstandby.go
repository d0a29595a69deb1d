package broker

import (
	"cmp"
	"slices"
)

// standBy places the copies of the units that have tables: never with a member that has the unit or is about to give it up,
// first where a store already is, and evenly. While a unit moves, the one it moves to keeps the copy it has.
func (a *assignor) standBy(d *decision) {
	d.standby = make([][]TablePartition, len(a.members))
	total := make([]int, len(a.members)) // copies by member
	copies := map[*unit][]int{}          // members
	var units []*unit
	wanted, holders := 0, 0
	for i := range a.units {
		if u := &a.units[i]; len(a.sets[u.set].tables) > 0 {
			units = append(units, u)
			may := 0
			for m := range a.members {
				if a.mayStandBy(u, m) {
					may++
				}
			}
			wanted += min(may, a.standbys)
		}
	}
	for _, m := range a.members {
		if m.ours {
			holders++
		}
	}
	if wanted == 0 {
		return
	}
	most := (wanted + holders - 1) / holders
	give := func(u *unit, m int) {
		copies[u] = append(copies[u], m)
		total[m]++
	}
	for _, u := range units {
		for _, w := range u.warm {
			if len(copies[u]) < a.standbys && total[w.member] < most && a.mayStandBy(u, w.member) {
				give(u, w.member)
			}
		}
	}
	for _, u := range units {
		for len(copies[u]) < a.standbys {
			best := -1
			for m := range a.members {
				if a.mayStandBy(u, m) && !slices.Contains(copies[u], m) && (best < 0 || total[m] < total[best]) {
					best = m
				}
			}
			if best < 0 {
				break
			}
			give(u, best)
		}
	}
	for a.levelStandbys(units, copies, total) {
	}
	for _, u := range units {
		s := &a.sets[u.set]
		if len(u.claims) > 0 && !claims(u, u.target) && a.holds(u, u.target) {
			copies[u] = append(copies[u], u.target)
		}
		for _, m := range copies[u] {
			for _, t := range s.tables {
				d.standby[m] = append(d.standby[m], TablePartition{t, u.number})
			}
		}
	}
	for _, ts := range d.standby {
		slices.SortFunc(ts, compareTablePartitions)
	}
}

// mayStandBy tells whether a member may hold a copy of the unit: it could take the unit over, and does not have it.
func (a *assignor) mayStandBy(u *unit, member int) bool {
	return member != u.target && a.members[member].ours && a.sets[u.set].eligible[member] && !claims(u, member)
}

func claims(u *unit, member int) bool {
	return slices.ContainsFunc(u.claims, func(c claim) bool { return c.member == member })
}

// levelStandbys moves one copy from a member with many to one with at least two fewer, and tells whether it could. A copy
// that is cold where it is goes before a warm one.
func (a *assignor) levelStandbys(units []*unit, copies map[*unit][]int, total []int) bool {
	order := make([]int, len(total)) // fewest first
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(total[x], total[y]) })
	for _, from := range slices.Backward(order) {
		for _, to := range order {
			if total[from]-total[to] < 2 {
				break
			}
			var best *unit
			for _, u := range units {
				if slices.Contains(copies[u], from) && !slices.Contains(copies[u], to) && a.mayStandBy(u, to) &&
					(best == nil || a.holds(best, from) && !a.holds(u, from)) {
					best = u
				}
			}
			if best != nil {
				copies[best][slices.Index(copies[best], from)] = to
				total[from]--
				total[to]++
				return true
			}
		}
	}
	return false
}

// holds tells whether a member has a store of the unit.
func (a *assignor) holds(u *unit, member int) bool {
	return slices.ContainsFunc(u.warm, func(w warmth) bool { return w.member == member })
}
