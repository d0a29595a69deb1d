package plan

import (
	"strings"
	"testing"
)

// A view on a path that the engine answers itself would never be called. It must be refused, but only where the engine does answer.
func TestPathsOfTheEngine(t *testing.T) {
	const app = "apiVersion: kaspr.io/v1alpha1\nkind: KasprApp\nmetadata: {name: demo}\nspec: {config: {CONFIG}}\n---\n"
	const view = "apiVersion: kaspr.io/v1alpha1\nkind: KasprWebView\nmetadata: {name: v, labels: {kaspr.io/app: demo}}\nspec: {request: {method: GET, path: PATH}}\n"
	both := "schedulerEnabled: true, schedulerWebEnabled: true"
	for _, c := range []struct {
		path, config string
		refused      bool
	}{
		{"/healthz", "", true},
		{"readyz", "", true},
		{"/status/", "", true},
		{"/metrics", "", true},
		{"/signal/rebalance", "", true},
		{"/signal/rebalance", "webBasePath: /v1", false},
		{"/_kaspr/x", "", true},
		{"/healthz/x", "", false},
		{"/healthz", "webBasePath: /v1", false},
		{"/metrics", "webMetricsBasePath: /in", false},
		{"/in/metrics", "webMetricsBasePath: /in", true},
		{"/schedule", both, true},
		{"/schedule", "schedulerEnabled: true", false},
		{"/schedule", "", false},
		{"/schedule", both + ", webBasePath: /v1", false},
	} {
		_, _, problems := planOf(t, "app.yaml", strings.Replace(app, "CONFIG", c.config, 1)+strings.Replace(view, "PATH", c.path, 1))
		refused := false
		for _, p := range problems {
			refused = refused || strings.Contains(p.Error(), "the engine answers")
		}
		if refused != c.refused || !refused && problems.Fatal() {
			t.Errorf("%s with %q: %v", c.path, c.config, problems)
		}
	}
}
