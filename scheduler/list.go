package scheduler

import "time"

// List returns messages and firings that wait, in the order in which they will leave: at most limit from a place on, and where to
// go on; done at the end.
func List(r Reader, from Location, limit int) (rows []Scheduled, next Location, done bool, err error) {
	raw, err := r.Get(headKey)
	if err != nil {
		return nil, from, false, err
	}
	h, err := decodeHead(raw)
	if err != nil {
		return nil, from, false, err
	}
	if from.less(h.Low) {
		from = h.Low // what has left may still have to be waded through below
	}
	rows, next, wake, err := Due(r, from, time.UnixMilli(latest).AddDate(1, 0, 0), limit, 1<<20)
	return rows, next, wake.IsZero(), err
}

// Start is before every message.
var Start = Location{Due: earliest}

// Entry is what an id stands for.
type Entry struct {
	State   string   // pending, sent, cancelled or failed
	Message *Message // while it is pending
	Due     int64    // of its message; 0 where none is known
	Since   int64    // when it came to its state
	Source  Source   // the request that brought it there
}

// Get is what a request id stands for; nil when nothing is known of it, or not any more.
func Get(r Reader, id string) (*Entry, error) {
	b, err := r.Get(idKey(id))
	if b == nil || err != nil {
		return nil, err
	}
	row, err := decodeID(b)
	if err != nil {
		return nil, err
	}
	e := &Entry{State: row.State.String(), Due: row.At.Due, Since: row.Since, Source: row.Source}
	if row.State != pending {
		return e, nil
	}
	if b, err = r.Get(row.At.key(spaceMessage)); b == nil || err != nil {
		return nil, err // it left in between
	}
	e.Message, _, err = decodeMessage(row.At, b)
	return e, err
}

// CronEntry is one cron, active or paused.
type CronEntry struct {
	ID               string
	Paused           bool
	Expression, Zone string
	Skip             bool // missed firings are not made up
	Topic            string
	Next, Last       int64 // firings, milliseconds; 0: none
	Since            int64 // when it was made, paused or resumed
	Source           Source
}

// Crons returns cron entries by id: at most limit behind the one given, all from the start when it is empty.
func Crons(r Reader, after string, limit int) (list []CronEntry, err error) {
	from := cronKey(after)
	if after != "" {
		from = append(from, 0)
	}
	it := r.Scan([]byte{spaceCron}, from)
	defer func() {
		if e := it.Close(); e != nil {
			list, err = nil, e
		}
	}()
	for len(list) < limit && it.Next() {
		c, err := decodeCron(it.Value())
		if err != nil {
			return nil, err
		}
		if c.State >= gone {
			continue
		}
		list = append(list, *c.entry(string(it.Key()[1:])))
	}
	return list, nil
}

// Cron is the cron entry of an id; nil when there is none.
func Cron(r Reader, id string) (*CronEntry, error) {
	b, err := r.Get(cronKey(id))
	if b == nil || err != nil {
		return nil, err
	}
	c, err := decodeCron(b)
	if err != nil || c.State >= gone {
		return nil, err
	}
	return c.entry(id), nil
}

func (c *cronRow) entry(id string) *CronEntry {
	return &CronEntry{
		ID: id, Paused: c.State == paused, Expression: c.Expression, Zone: c.Zone, Skip: c.Skip,
		Topic: c.Topic, Next: c.Next, Last: c.Last, Since: c.Since, Source: c.Source,
	}
}

func (s status) String() string {
	return map[status]string{pending: "pending", paused: "paused", sent: "sent", cancelled: "cancelled", failed: "failed"}[s]
}
