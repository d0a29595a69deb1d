package config

import "kaspr.io/kaspr/engine/manifest"

// Sources are where settings come from, weakest first: the defaults, the KasprApp, File, Environ, Flags.
type Sources struct {
	File    string            // YAML file; empty: none
	Environ []string          // as os.Environ gives it
	Dir     string            // where the search for .env begins, upwards; empty: no .env
	Flags   map[string]string // by setting key, such as logLevel
}

// Layers are the sources as read. Reading never fails: problems come out of Config, all at once.
type Layers struct {
	src Sources
}

// Read reads the file, the .env file and the environment.
func Read(src Sources) *Layers { return &Layers{src: src} }

// Early is what is needed before the manifests are read; wrong values are left at their defaults.
func (l *Layers) Early() Config { return Config{} }

// Config merges the layers with the app's own settings (nil: none) and checks the result.
func (l *Layers) Config(app *manifest.App) (Config, manifest.Errors) { return Config{}, nil }

// Default is every setting's default.
func Default() Config { return Config{} }
