package dev

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"kaspr.io/kaspr/engine"
)

// request is one line of --requests. At most one of Body, Base64 and JSON is given.
type request struct {
	App     string            `json:"app"`    // needed if several apps have web views
	Method  string            `json:"method"` // GET if not given
	Path    string            `json:"path"`   // with the query, as it goes out
	Headers map[string]string `json:"headers"`
	Body    *string           `json:"body"`
	Base64  []byte            `json:"base64"`
	JSON    json.RawMessage   `json:"json"` // sent as application/json
	// Until has it sent again until the response has this status, for untilWithin.
	Until int `json:"until"`
}

// response is what is printed of an answer.
type response struct {
	Request string            `json:"request"`
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    any               `json:"body"` // a JSON value, a text, or {"base64": ...}
}

const untilWithin = 20 * time.Second

// readyWithin is how long requests wait for the app to be ready.
const readyWithin = time.Minute

// ask sends the requests of a file when the apps are ready, and prints the responses.
func ask(ctx context.Context, file string, apps []App, loaded []*engine.App, out *printer) error {
	bases := map[string]string{}
	for i, a := range apps {
		base, err := ready(ctx, loaded[i])
		if err != nil {
			return err
		}
		if len(apps) == 1 || len(a.Plan.Views) > 0 {
			bases[a.Plan.App.Name] = base
		}
	}
	return exchanges(ctx, file, out.value, func(app string) (string, error) {
		if base, ok := bases[app]; ok {
			return base, nil
		}
		names := slices.Sorted(maps.Keys(bases))
		if app != "" || len(names) != 1 {
			return "", fmt.Errorf("app %q: one of %q is wanted", app, names)
		}
		return bases[names[0]], nil
	})
}

// Ask sends the requests of a file one after the other to a server, and shows each response.
func Ask(ctx context.Context, base, file string, show func(response any) error) error {
	return exchanges(ctx, file, show, func(string) (string, error) { return base, nil })
}

// exchanges sends the requests of a file to the servers of their apps.
func exchanges(ctx context.Context, file string, show func(response any) error, baseOf func(app string) (string, error)) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("--requests: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		r, err := exchange(ctx, baseOf, lines.Bytes())
		if err != nil {
			return fmt.Errorf("--requests: %s:%d: %w", file, n, err)
		}
		if err := show(r); err != nil {
			return err
		}
	}
	return lines.Err()
}

// ready waits for the app, and gives the address it answers at.
func ready(ctx context.Context, app *engine.App) (base string, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		if address := app.Listening(); address != "" {
			base = "http://" + address
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz", nil)
			if err != nil {
				return "", err
			}
			resp, err := http.DefaultClient.Do(req)
			if err == nil {
				_ = resp.Body.Close() // nothing is read of it
				if resp.StatusCode == http.StatusOK {
					return base, nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("wait for the app before --requests: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// exchange sends the request of a line.
func exchange(ctx context.Context, baseOf func(app string) (string, error), line []byte) (*response, error) {
	var r request
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	base, err := baseOf(r.App)
	if err != nil {
		return nil, err
	}
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	for began := time.Now(); ; {
		got, err := r.send(ctx, base)
		if err != nil || r.Until == 0 || got.Status == r.Until || time.Since(began) > untilWithin {
			return got, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (r *request) send(ctx context.Context, base string) (*response, error) {
	var body io.Reader
	switch {
	case r.JSON != nil:
		body = bytes.NewReader(r.JSON)
	case r.Base64 != nil:
		body = bytes.NewReader(r.Base64)
	case r.Body != nil:
		body = strings.NewReader(*r.Body)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, base+r.Path, body)
	if err != nil {
		return nil, err
	}
	if r.JSON != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range r.Headers {
		req.Header.Set(name, value)
		if strings.EqualFold(name, "Host") {
			req.Host = value
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	got := &response{Request: r.Method + " " + r.Path, Status: resp.StatusCode, Headers: map[string]string{}}
	for name, values := range resp.Header {
		got.Headers[name] = strings.Join(values, ", ")
	}
	switch {
	case strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") && json.Valid(text):
		got.Body = json.RawMessage(text)
	case utf8.Valid(text):
		got.Body = string(text)
	default:
		got.Body = map[string]string{"base64": base64.StdEncoding.EncodeToString(text)}
	}
	return got, nil
}
