package plan

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"kaspr.io/kaspr/engine/manifest"
)

// environment is what Code sees as os.environ: what the KasprApp declares for its container, and what codeEnv lets
// through. A value in the manifest counts; what comes from a Secret or the like is taken from the process.
func (b *builder) environment() map[string]string {
	env := map[string]string{}
	for _, name := range b.cfg.CodeEnv {
		value, ok := b.cfg.Getenv(name)
		if !ok {
			b.warn(manifest.Pos{File: "settings"}, manifest.EnvironmentUnset, fmt.Sprintf("codeEnv names %q, which is not set", name), "")
			continue
		}
		env[name] = value
	}
	for _, v := range b.app.Env {
		if !v.From.Set() {
			env[v.Name.V] = expand(v.Value.V, env)
			continue
		}
		value, ok := b.cfg.Getenv(v.Name.V)
		if !ok {
			b.warn(v.Name.Pos, manifest.EnvironmentUnset, fmt.Sprintf("environment variable %q comes from a %s and is not set here", v.Name.V, strings.TrimSuffix(v.From.V, "Ref")), "set it in the environment of the process")
			continue
		}
		env[v.Name.V] = value
	}
	return env
}

// packages says of each Python package that it cannot be imported. An import of one fails when the app is loaded.
func (b *builder) packages() {
	if b.app.Packages == nil {
		return
	}
	for _, r := range b.app.Packages.Requirements {
		b.warn(r.Pos, manifest.NoEffect, b.app.Label()+": package "+strconv.Quote(r.V)+" cannot be imported: this version loads no packages", "what Code needs of it can stand in init")
	}
}

var reference = regexp.MustCompile(`\$\$|\$\([A-Za-z_.-][A-Za-z0-9_.-]*\)`)

// expand replaces $(NAME) by variables declared before, as Kubernetes does: an unknown one stays, $$ is a dollar sign.
func expand(value string, env map[string]string) string {
	return reference.ReplaceAllStringFunc(value, func(ref string) string {
		if ref == "$$" {
			return "$"
		}
		if known, ok := env[ref[2:len(ref)-1]]; ok {
			return known
		}
		return ref
	})
}
