package engine

import (
	"cmp"
	"encoding/base64"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
)

// failures are the last records and requests of web views that failed, for the console: at most failuresMax, each with no more than the begin of its texts. The zero
// value is ready.
type failures struct {
	mu   sync.Mutex
	list [failuresMax]failedRecord // guarded by mu; a ring
	n    int64                     // guarded by mu; ever added
	of   map[string]agentError     // guarded by mu; the last one of each agent and web view that had one
}

// agentError is the last failure of an agent or a web view, as /status tells it.
type agentError struct {
	Time      time.Time `json:"time"`
	Operation string    `json:"operation"`
	Kind      string    `json:"kind"`
	Type      string    `json:"type"`
	Message   string    `json:"message,omitempty"` // for operators only: it may quote the record
}

const (
	failuresMax  = 100
	shownBytes   = 4 << 10 // of a key, a value, a text
	shownHeaders = 20
)

// failedRecord is one of them, as JSON tells it.
type failedRecord struct {
	ID        int64     `json:"id"`
	Time      int64     `json:"time"` // milliseconds
	Agent     string    `json:"agent"`
	Operation string    `json:"operation"`
	Kind      string    `json:"kind"`
	Type      string    `json:"type"`
	Message   string    `json:"message"`
	Traceback string    `json:"traceback"`
	Policy    string    `json:"policy,omitempty"` // what became of the record: retry, skip, dead-letter, stop
	Attempt   int32     `json:"attempt,omitempty"`
	Record    *shownRec `json:"record,omitempty"`
	Request   *shownReq `json:"request,omitempty"` // in place of the record, of a web view
}

// shownReq is a request for people, without its query and headers: those are where credentials are.
type shownReq struct {
	Method string        `json:"method"`
	Path   string        `json:"path"` // as it was sent
	Body   *shownBytesOf `json:"body"` // null: none
	Status int           `json:"status"`
}

// shownRec is a record for people.
type shownRec struct {
	Topic     string        `json:"topic"`
	Partition int32         `json:"partition"`
	Offset    int64         `json:"offset"`
	Timestamp int64         `json:"timestamp"`
	Key       *shownBytesOf `json:"key"` // null: none
	Value     *shownBytesOf `json:"value"`
	Headers   []shownHeader `json:"headers"`
	More      int           `json:"moreHeaders"` // that are not shown
}

type shownHeader struct {
	Key   string        `json:"key"`
	Value *shownBytesOf `json:"value"`
}

// shownBytesOf is the begin of some bytes: text if they are UTF-8, else base64.
type shownBytesOf struct {
	Text   string `json:"text,omitempty"`
	Base64 string `json:"base64,omitempty"`
	Size   int    `json:"size"` // of all
}

// shownOf copies what is shown, so that nothing holds on to the whole.
func shownOf(b []byte) *shownBytesOf {
	if b == nil {
		return nil
	}
	s := &shownBytesOf{Size: len(b)}
	if len(b) > shownBytes {
		b = b[:shownBytes]
		for cut := 1; cut < utf8.UTFMax && !utf8.Valid(b); cut++ { // not in the middle of a character
			if utf8.Valid(b[:len(b)-cut]) {
				b = b[:len(b)-cut]
			}
		}
	}
	if utf8.Valid(b) {
		s.Text = string(b)
	} else {
		s.Base64 = base64.StdEncoding.EncodeToString(b)
	}
	return s
}

func shownText(s string) string { return string([]byte(s[:min(len(s), shownBytes)])) }

func shownRecord(r *record.Record) shownRec {
	s := shownRec{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp, Key: shownOf(r.Key), Value: shownOf(r.Value), Headers: []shownHeader{},
	}
	for i, h := range r.Headers {
		if i == shownHeaders {
			s.More = len(r.Headers) - i
			break
		}
		s.Headers = append(s.Headers, shownHeader{shownText(h.Key), shownOf(h.Value)})
	}
	return s
}

func (l *failures) add(agent, policy string, r *record.Record, f *record.Failure, now time.Time) {
	shown := shownRecord(r)
	l.keep(failedRecord{Agent: agent, Policy: policy, Attempt: r.Attempt, Record: &shown}, f, now)
}

// addRequest adds a request that was answered with a status.
func (l *failures) addRequest(view string, req *apphttp.Request, status int, f *record.Failure, now time.Time) {
	method, path := req.Line()
	l.keep(failedRecord{Agent: view, Request: &shownReq{shownText(method), shownText(path), shownOf(req.Body), status}}, f, now)
}

func (l *failures) keep(x failedRecord, f *record.Failure, now time.Time) {
	x.Time, x.Operation, x.Kind = now.UnixMilli(), shownText(f.Operation), f.Kind.String()
	x.Type, x.Message, x.Traceback = shownText(f.Type), shownText(f.Message), shownText(f.Traceback)
	l.mu.Lock()
	defer l.mu.Unlock()
	x.ID = l.n
	l.list[l.n%failuresMax] = x
	l.n++
	if l.of == nil {
		l.of = map[string]agentError{}
	}
	l.of[x.Agent] = agentError{now.UTC().Truncate(time.Millisecond), x.Operation, x.Kind, x.Type, x.Message}
}

// lastOf is the last failure of an agent; nil: it had none.
func (l *failures) lastOf(agent string) *agentError {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.of[agent]; ok {
		return &e
	}
	return nil
}

// last is those there are, the newest first.
func (l *failures) last() []failedRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := slices.Clone(l.list[:min(l.n, failuresMax)])
	slices.SortFunc(list, func(a, b failedRecord) int { return cmp.Compare(b.ID, a.ID) })
	return list
}
