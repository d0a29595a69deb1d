package scheduler

import (
	"bytes"
	"maps"
	"slices"
	"time"
)

// Clean forgets ids whose messages are gone for long enough. Wake is now while there is more, else when the next may go.
func (s *Settings) Clean(r Reader, now time.Time) (Step, error) {
	w, err := s.begin(r, now, nil, nil)
	if err != nil {
		return Step{}, err
	}
	keys, err := w.forgettable()
	if err != nil || len(keys) == 0 {
		return *w.Step, err
	}
	slices.SortFunc(keys, bytes.Compare)
	keys = slices.CompactFunc(keys, bytes.Equal) // an id may have come and gone more than once
	rows, err := r.MultiGet(keys)
	if err != nil {
		return Step{}, err
	}
	later := map[int64][][]byte{} // the setting was raised since
	for i, key := range keys {
		st, since, err := lasting(key, rows[i])
		switch until := since + s.Remember.Milliseconds(); {
		case err != nil:
			return Step{}, err
		case st < gone: // nothing, or something else by now
		case until > w.ms:
			later[until] = append(later[until], key)
		default:
			w.put(0, key, nil)
		}
	}
	for _, until := range slices.Sorted(maps.Keys(later)) {
		w.forget(until, later[until])
	}
	return w.finish(), nil
}

// forgettable takes lists away whose time has come.
func (w *work) forgettable() (keys [][]byte, err error) {
	it := w.r.Scan([]byte{spaceForget}, nil)
	defer func() {
		if e := it.Close(); e != nil {
			err = e
		}
	}()
	for it.Next() {
		at, err := locationOf(it.Key())
		if err != nil {
			return nil, err
		}
		if at.Due > w.ms {
			w.wake(time.UnixMilli(at.Due))
			break
		}
		if len(keys) >= w.s.BatchMessages {
			w.wake(w.now)
			break
		}
		list, err := decodeForget(it.Value())
		if err != nil {
			return nil, err
		}
		keys = append(keys, list...)
		w.put(0, it.Key(), nil)
	}
	return keys, nil
}

// lasting is what a row of an id or a cron says of its state.
func lasting(key, row []byte) (status, int64, error) {
	switch {
	case row == nil:
		return 0, 0, nil
	case len(key) > 0 && key[0] == spaceCron:
		c, err := decodeCron(row)
		return c.State, c.Since, err
	}
	r, err := decodeID(row)
	return r.State, r.Since, err
}
