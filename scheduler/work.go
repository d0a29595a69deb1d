package scheduler

import (
	"time"
)

// work is a step in the making: the rows it has read or changed so far, over those of the table.
type work struct {
	*Step
	s     *Settings
	r     Reader
	now   time.Time
	ms    int64
	at    int32 // index of the record or message in progress
	head  head
	read  head
	ids   map[string]*idRow
	crons map[string]*cronRow
	gone  [][]byte // keys of rows that may be forgotten some day
}

// begin reads the head and the rows of some ids and crons, all at once.
func (s *Settings) begin(r Reader, now time.Time, ids, crons []string) (*work, error) {
	w := &work{Step: &Step{}, s: s, r: r, now: now, ms: now.UnixMilli(), ids: map[string]*idRow{}, crons: map[string]*cronRow{}}
	keys := make([][]byte, 0, 1+len(ids)+len(crons))
	keys = append(keys, headKey)
	for _, id := range ids {
		keys = append(keys, idKey(id))
	}
	for _, id := range crons {
		keys = append(keys, cronKey(id))
	}
	rows, err := r.MultiGet(keys)
	if err != nil {
		return nil, err
	}
	if w.head, err = decodeHead(rows[0]); err != nil {
		return nil, err
	}
	w.read = w.head
	for i, id := range ids {
		if b := rows[1+i]; b != nil {
			row, err := decodeID(b)
			if err != nil {
				return nil, err
			}
			w.ids[id] = &row
		}
	}
	for i, id := range crons {
		if b := rows[1+len(ids)+i]; b != nil {
			row, err := decodeCron(b)
			if err != nil {
				return nil, err
			}
			w.crons[id] = &row
		}
	}
	return w, nil
}

// seq is a number that was never used before in this partition.
func (w *work) seq() uint64 {
	w.head.Seq++
	return w.head.Seq - 1
}

// place chooses where a message lies that leaves at a time.
func (w *work) place(due int64) Location {
	at := Location{due, w.seq()}
	w.head.Count++
	if at.less(w.head.Low) {
		w.head.Low = at
	}
	w.wake(time.UnixMilli(due))
	return at
}

func (w *work) insert(m *Message, due int64) {
	m.At = w.place(due)
	w.put(w.at, m.At.key(spaceMessage), m.encode())
}

func (w *work) remove(at Location) {
	w.head.Count--
	w.put(w.at, at.key(spaceMessage), nil)
}

func (w *work) setID(id string, row *idRow) {
	w.ids[id] = row
	w.put(w.at, idKey(id), row.encode())
	if row.State >= gone {
		w.gone = append(w.gone, idKey(id))
	}
}

func (w *work) setCron(id string, row *cronRow) {
	w.crons[id] = row
	w.put(w.at, cronKey(id), row.encode())
	if row.State >= gone {
		w.gone = append(w.gone, cronKey(id))
	}
}

// forgetBytes is about how large one list of ids gets.
const forgetBytes = 64 << 10

// finish adds the rows of the step as a whole.
func (w *work) finish() Step {
	for keys := w.gone; len(keys) > 0; {
		n, size := 0, 0
		for n < len(keys) && size < forgetBytes {
			size += len(keys[n])
			n++
		}
		w.forget(w.ms+w.s.Remember.Milliseconds(), keys[:n])
		keys = keys[n:]
	}
	if w.head != w.read {
		w.put(w.at, headKey, w.head.encode())
	}
	return *w.Step
}

func (w *work) forget(from int64, keys [][]byte) {
	w.put(w.at, Location{from, w.seq()}.key(spaceForget), encodeForget(keys))
}

func (w *work) note(o Outcome) { w.s.note(w.Step, w.at, o, w.now) }
