package manifest

import "slices"

// WebView is a KasprWebView: one HTTP method on one path.
type WebView struct {
	Meta
	SpecName    Value[string]
	Description Value[string]
	Method      Value[string]
	Path        Value[string] // as written
	Route       *Route        // what Path means
	Response    Response
	Processors  Processors
}

// Response is how a web view answers.
type Response struct {
	Pos                Pos
	ContentType        Value[string]
	StatusCode         Value[int]
	Headers            []Entry
	BodySelector       *ResultSelector
	StatusCodeSelector *ResultSelector
	HeadersSelector    *ResultSelector
}

// ResultSelector has a function for either outcome, at least one.
type ResultSelector struct {
	Pos       Pos
	OnSuccess *Code
	OnError   *Code
}

func (c cursor) webView(w *WebView) {
	c.object(append(c.specName(&w.Meta, &w.SpecName),
		may("description", func(c cursor) { c.text(&w.Description) }),
		must("request", func(c cursor) {
			c.object(
				must("method", func(c cursor) {
					c.word(&w.Method, "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
				}),
				must("path", func(c cursor) { c.route(w) }),
			)
		}),
		may("response", func(c cursor) { c.response(&w.Response) }),
		may("processors", func(c cursor) { c.processors(&w.Processors, otherPipeline, false) }),
	)...)
	w.arguments(c)
}

// arguments finds names that the first operation would get twice: it is called with the path's parameters beside its tables.
func (w *WebView) arguments(c cursor) {
	if w.Route == nil || len(w.Processors.Pipeline) == 0 {
		return
	}
	op := w.Processors.Operation(w.Processors.Pipeline[0].V)
	if op == nil {
		return
	}
	for _, ref := range op.Tables {
		if slices.Contains(w.Route.Params, ref.ParamName.V) {
			c.failAt(ref.ParamName.Pos, NamedTwice, "paramName "+quote(ref.ParamName.V)+" is also a parameter of the path "+quote(w.Path.V), "rename one of them: the first operation gets both")
		}
	}
}

// Content types of responses, and the short names that older texts have for them.
var (
	contentTypes      = []string{"text/html", "application/json", "text/plain", "application/octet-stream"}
	contentTypesShort = map[string]string{
		"html": "text/html", "json": "application/json", "text": "text/plain", "plain": "text/plain",
		"bytes": "application/octet-stream", "binary": "application/octet-stream", "octet-stream": "application/octet-stream",
	}
)

func (c cursor) response(r *Response) {
	r.Pos = c.at
	there := c.object(
		may("contentType", func(c cursor) { c.oldWord(&r.ContentType, contentTypesShort, contentTypes...) }),
		may("statusCode", func(c cursor) { whole(c, &r.StatusCode, 200, 599) }), // lesser ones end no request
		may("headers", func(c cursor) { c.texts(&r.Headers) }),
		may("bodySelector", func(c cursor) { c.resultSelector(&r.BodySelector) }),
		may("statusCodeSelector", func(c cursor) { c.resultSelector(&r.StatusCodeSelector) }),
		may("headersSelector", func(c cursor) { c.resultSelector(&r.HeadersSelector) }),
	)
	if there == nil {
		return
	}
	// Both are allowed as long as they are about different outcomes: the constant is for success.
	if there["statusCode"] && r.StatusCodeSelector != nil && r.StatusCodeSelector.OnSuccess != nil {
		c.failAt(r.StatusCodeSelector.Pos, Contradiction, c.name()+" has statusCode and statusCodeSelector.onSuccess, which exclude each other", "keep one")
	}
}

func (c cursor) resultSelector(dst **ResultSelector) {
	s := &ResultSelector{Pos: c.at}
	there := c.of("ResultSelector").object(
		may("onSuccess", func(c cursor) { c.code(&s.OnSuccess) }),
		may("onError", func(c cursor) { c.code(&s.OnError) }),
	)
	if there == nil {
		return
	}
	c.atLeastOne(there, "onSuccess", "onError")
	*dst = s
}
