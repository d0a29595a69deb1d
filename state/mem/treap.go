package mem

import (
	"hash/fnv"
	"strings"
)

// A node is a treap that is never changed: writing makes new nodes on the way to the key and shares the rest, so a version of
// a store costs nothing to keep. nil is the empty one.
type node struct {
	key         string
	value       []byte
	expires     int64
	rank        uint32 // a hash of the key: a node's is not less than its children's
	size        int64
	left, right *node
}

func (n *node) len() int64 {
	if n == nil {
		return 0
	}
	return n.size
}

func (n *node) get() []byte {
	if n == nil {
		return nil
	}
	return n.value
}

func (n *node) find(key string) *node {
	for n != nil && n.key != key {
		if key < n.key {
			n = n.left
		} else {
			n = n.right
		}
	}
	return n
}

// over is a copy of n with other children.
func (n *node) over(left, right *node) *node {
	c := *n
	c.left, c.right, c.size = left, right, 1+left.len()+right.len()
	return &c
}

func (n *node) with(key string, value []byte, expires int64) *node {
	if n == nil {
		h := fnv.New32a()
		_, _ = h.Write([]byte(key))
		return &node{key: key, value: value, expires: expires, rank: h.Sum32() * 0x9E3779B1, size: 1}
	}
	switch strings.Compare(key, n.key) {
	case -1:
		l := n.left.with(key, value, expires)
		if l.rank > n.rank {
			return l.over(l.left, n.over(l.right, n.right))
		}
		return n.over(l, n.right)
	case 1:
		r := n.right.with(key, value, expires)
		if r.rank > n.rank {
			return r.over(n.over(n.left, r.left), r.right)
		}
		return n.over(n.left, r)
	}
	c := *n
	c.value, c.expires = value, expires
	return &c
}

func (n *node) without(key string) *node {
	if n == nil {
		return nil
	}
	switch strings.Compare(key, n.key) {
	case -1:
		if l := n.left.without(key); l != n.left {
			return n.over(l, n.right)
		}
		return n
	case 1:
		if r := n.right.without(key); r != n.right {
			return n.over(n.left, r)
		}
		return n
	}
	return join(n.left, n.right)
}

// join is both, all of a before all of b.
func join(a, b *node) *node {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.rank > b.rank:
		return a.over(a.left, join(a.right, b))
	}
	return b.over(join(a, b.left), b.right)
}

// A walk is the nodes still to visit whose left part is done, innermost last.
type walk []*node

// from starts at the first key that is not less than key.
func (n *node) from(key string) walk {
	var w walk
	for n != nil {
		if n.key < key {
			n = n.right
		} else {
			w, n = append(w, n), n.left
		}
	}
	return w
}

func (w *walk) next() *node {
	last := len(*w) - 1
	if last < 0 {
		return nil
	}
	n := (*w)[last]
	*w = (*w)[:last]
	for c := n.right; c != nil; c = c.left {
		*w = append(*w, c)
	}
	return n
}
