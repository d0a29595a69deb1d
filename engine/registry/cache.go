package registry

import (
	"container/list"
	"time"
)

// cache holds the most recently used entries, as many as its limits allow. Its owner has the lock.
type cache[K comparable] struct {
	entries int // limits
	bytes   int

	byKey map[K]*list.Element // of entry[K]
	order list.List           // most recently used first
	size  int
}

// bytesMax bounds the schemas a cache holds, counted by their text.
const bytesMax = 64 << 20

func newCache[K comparable](entries int) *cache[K] {
	return &cache[K]{entries: entries, bytes: bytesMax, byKey: map[K]*list.Element{}}
}

type entry[K comparable] struct {
	key    K
	schema *schema
}

func (c *cache[K]) get(key K) *schema {
	e := c.byKey[key]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(entry[K]).schema
}

// current is get, but for an error whose time is over.
func (c *cache[K]) current(key K) *schema {
	if s := c.get(key); s != nil && (s.until.IsZero() || time.Now().Before(s.until)) {
		return s
	}
	return nil
}

func (c *cache[K]) put(key K, s *schema) {
	c.drop(key)
	c.byKey[key] = c.order.PushFront(entry[K]{key, s})
	c.size += s.size
	for c.order.Len() > 1 && (c.order.Len() > c.entries || c.size > c.bytes) {
		c.drop(c.order.Back().Value.(entry[K]).key)
	}
}

func (c *cache[K]) drop(key K) {
	e := c.byKey[key]
	if e == nil {
		return
	}
	c.size -= e.Value.(entry[K]).schema.size
	c.order.Remove(e)
	delete(c.byKey, key)
}
