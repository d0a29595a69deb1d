package plan

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

const described = `# set webBasePath=/v1
# set webToken=secret
apiVersion: kaspr.io/v1alpha1
kind: KasprApp
metadata: {name: shop}
spec: {}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: one, labels: {kaspr.io/app: shop}}
spec:
  description: One order.
  request: {method: GET, path: "/orders/{id:[0-9]{1,9}}"}
  response: {contentType: json}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: change, labels: {kaspr.io/app: shop}}
spec:
  request: {method: PUT, path: "/orders/{order:[0-9]{1,9}}"}
  response: {contentType: json, statusCode: 202, bodySelector: {onError: {python: "def b(e): return 1"}}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: named, labels: {kaspr.io/app: shop}}
spec:
  request: {method: GET, path: "/orders/{name}"}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: gone, labels: {kaspr.io/app: shop}}
spec:
  request: {method: DELETE, path: "orders"}
  response: {statusCode: 204}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: chosen, labels: {kaspr.io/app: shop}}
spec:
  request: {method: POST, path: /orders}
  response: {contentType: bytes, statusCodeSelector: {onSuccess: {python: "def s(v): return 201"}, onError: {python: "def s(v): return 400"}}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: look, labels: {kaspr.io/app: shop}}
spec:
  request: {method: HEAD, path: /orders}
`

// Clients are generated from the document: it must be valid OpenAPI, and say of each view what its manifest says.
func TestOpenAPI(t *testing.T) {
	p, cfg, problems := planOf(t, "app.yaml", described)
	if problems.Fatal() {
		t.Fatal(problems)
	}
	text := p.OpenAPI(cfg, "1.2.3")
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
	for _, want := range []string{
		`"title":"shop-app","version":"1.2.3"`,
		`"/v1/orders/{id}":{"get":{"operationId":"one","description":"One order.","parameters":[{"name":"id","in":"path","required":true,"schema":{"type":"string","pattern":"^(?:[0-9]{1,9})$"}}]`,
		`"x-kaspr-also":[{"view":"named","path":"/v1/orders/{name}"}]`,
		`"put":{"operationId":"change","parameters":[{"name":"id",`, `"security":[{"token":[]}]`, `"scheme":"bearer"`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	orders := doc.Paths.Value("/v1/orders")
	for what, ok := range map[string]bool{
		"json":              doc.Paths.Value("/v1/orders/{id}").Get.Responses.Value("200").Value.Content.Get("application/json") != nil,
		"error of json":     doc.Paths.Value("/v1/orders/{id}").Get.Responses.Value("500").Value.Content["application/json"].Schema.Value.Properties["cause"] != nil,
		"error as chosen":   len(doc.Paths.Value("/v1/orders/{id}").Put.Responses.Value("500").Value.Content["application/json"].Schema.Value.Properties) == 0,
		"status":            doc.Paths.Value("/v1/orders/{id}").Put.Responses.Value("202") != nil && doc.Paths.Value("/v1/orders/{id}").Put.Responses.Value("200") == nil,
		"body":              doc.Paths.Value("/v1/orders/{id}").Put.RequestBody != nil && doc.Paths.Value("/v1/orders/{id}").Get.RequestBody == nil,
		"nothing":           orders.Delete.Responses.Value("204") != nil && len(orders.Delete.Responses.Value("204").Value.Content) == 0,
		"a chosen status":   orders.Post.Responses.Value("200") == nil && orders.Post.Responses.Value("500") == nil && orders.Post.Responses.Default() != nil,
		"bytes":             orders.Post.Responses.Default().Value.Content.Get("application/octet-stream").Schema.Value.Format == "binary",
		"HEAD has no body":  orders.Head != nil && len(orders.Head.Responses.Value("200").Value.Content) == 0,
		"no path but these": doc.Paths.Len() == 2,
	} {
		if !ok {
			t.Errorf("%s: not so in\n%s", what, text)
		}
	}
}

// Whatever views the tests' manifests have, the document is valid.
func TestOpenAPIOfAll(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cases, err := filepath.Glob("../../testdata/conformance/view-*/views.yaml")
	if err != nil || len(cases) < 6 {
		t.Fatal("no cases of views", err)
	}
	views := 0
	for _, file := range append(files, cases...) {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p, cfg, _ := planOf(t, "app.yaml", string(content))
		if p == nil {
			continue
		}
		text := p.OpenAPI(cfg, "")
		doc, err := openapi3.NewLoader().LoadFromData(text)
		if err == nil {
			err = doc.Validate(t.Context())
		}
		if err != nil || !json.Valid(text) {
			t.Errorf("%s: %v\n%s", file, err, text)
		}
		views += len(p.Views)
	}
	if views < 20 {
		t.Errorf("only %d views were described", views)
	}
}
