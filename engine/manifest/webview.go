package manifest

// WebView is a KasprWebView: one HTTP method on one path.
type WebView struct {
	Meta
	SpecName    Value[string]
	Description Value[string]
	Method      Value[string]
	Path        Value[string]
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
