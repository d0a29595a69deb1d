// Package workload holds the work that benchmarks measure: the records, the apps, and what must come of them.
//
// W1 drops one record in ten and adds a field to the others. W2 counts the records of each user in a table and sends each count
// on. Records are about 205 bytes of JSON from 100,000 users; n records are the same ones everywhere.
package workload

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"math/rand/v2"
)

// The apps, as manifests: input topic "in", output topic "out".
var (
	//go:embed w1.yaml
	W1 string
	//go:embed w2.yaml
	W2 string
)

// Event is one input record.
type Event struct {
	User      string // also the record's key
	Value     []byte
	Heartbeat bool // W1 drops it
}

var kinds = [...]string{"click", "view", "login", "search", "purchase", "logout", "scroll", "share", "signup", "heartbeat"}

// Shape is what events look like; the zero value is that of the workloads.
type Shape struct {
	Users int // 0: 100,000
	Bytes int // of a value; 0: about 205
}

// Events calls each with n events.
func Events(n int, each func(Event)) { Shape{}.Events(n, each) }

// Events calls each with n events of the shape.
func (s Shape) Events(n int, each func(Event)) {
	g := rand.New(rand.NewPCG(42, 7))
	users := s.Users
	if users == 0 {
		users = 100_000
	}
	for i := range n {
		user, kind := fmt.Sprintf("u%d", g.IntN(users)), kinds[g.IntN(len(kinds))]
		amount := float64(g.IntN(100_000)) / 100
		var value []byte
		if s.Bytes == 0 {
			value = fmt.Appendf(nil, `{"user_id":"%s","event":"%s","ts":%d,"amount":%.2f,"tags":["alpha","beta%d"],`+
				`"page":{"url":"/products/%d/details","ref":"https://ref.example/%d"},"session":"s%012d","seq":%d}`,
				user, kind, 1_700_000_000+i/100, amount, g.IntN(9), g.IntN(10_000), g.IntN(1_000), g.IntN(1<<40), i)
		} else {
			value = fmt.Appendf(nil, `{"user_id":"%s","event":"%s","amount":%.2f,"seq":%d,"text":"`, user, kind, amount, i)
			for n := s.Bytes - len(value) - 2; n > 0; n-- {
				value = append(value, 'a'+byte(n%26))
			}
			value = append(value, `"}`...)
		}
		each(Event{user, value, kind == "heartbeat"})
	}
}

// Check is what came of a workload so far.
type Check struct {
	name    string
	want    int            // outputs
	records map[string]int // by user
	kept    map[int]bool   // W1: sequence numbers
	got     int
	counts  map[string]int // W2: outputs by user
	highest map[string]int // W2: highest count by user
	wrong   string         // the first output that is not right
}

// NewCheck makes the Check of a workload ("w1" or "w2") over n events.
func NewCheck(name string, n int) *Check {
	c := &Check{name: name, records: map[string]int{}, kept: map[int]bool{}, counts: map[string]int{}, highest: map[string]int{}}
	i := 0
	Events(n, func(e Event) {
		c.records[e.User]++
		if name == "w2" {
			c.want++
		} else if !e.Heartbeat {
			c.kept[i] = true
			c.want++
		}
		i++
	})
	return c
}

// Want is how many outputs there are to be.
func (c *Check) Want() int { return c.want }

// Add looks at one output.
func (c *Check) Add(value []byte) {
	c.got++
	var v struct {
		User   string  `json:"user_id"`
		Event  string  `json:"event"`
		Amount float64 `json:"amount"`
		Seq    int     `json:"seq"`
		Big    *bool   `json:"big"`
		Count  int     `json:"count"`
	}
	err := json.Unmarshal(value, &v)
	ok := err == nil
	switch {
	case !ok:
	case c.name == "w2":
		c.counts[v.User]++
		c.highest[v.User] = max(c.highest[v.User], v.Count)
		ok = v.Count > 0
	default:
		ok = v.Event != "heartbeat" && v.Big != nil && *v.Big == (v.Amount > 500) && c.kept[v.Seq]
		delete(c.kept, v.Seq)
	}
	if !ok && c.wrong == "" {
		c.wrong = fmt.Sprintf("output %.300q (%v)", value, err)
	}
}

// Err says what is wrong with all outputs; nil when they are right, each once.
func (c *Check) Err() error {
	switch {
	case c.wrong != "":
		return fmt.Errorf("wrong or repeated: %s", c.wrong)
	case c.got != c.want:
		return fmt.Errorf("%d outputs, want %d", c.got, c.want)
	case c.name == "w1" && len(c.kept) > 0:
		return fmt.Errorf("%d records are missing", len(c.kept))
	case c.name == "w2":
		for user, n := range c.records {
			if c.counts[user] != n || c.highest[user] != n {
				return fmt.Errorf("user %s: %d records, %d outputs, highest count %d", user, n, c.counts[user], c.highest[user])
			}
		}
	}
	return nil
}
