package engine

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/state"
)

// openStores opens the state directory with the settings of all stores and the options of each table.
func openStores(cfg config.Config, p *plan.Plan, log *slog.Logger) (*state.Dir, error) {
	s := cfg.Store
	o := state.Options{
		Dir: cfg.TableDir, MemoryLimit: s.MemoryMax, BlockCacheSize: s.BlockCacheSize,
		WriteBufferSize: s.WriteBufferSize, MaxWriteBufferNumber: s.MaxWriteBufferNumber, TargetFileSizeBase: s.TargetFileSizeBase,
		BloomFilterBits: s.BloomFilterSize, CacheIndexAndFilter: s.CacheIndexAndFilter,
		Tables: map[string]map[string]string{}, Log: log,
	}
	if o.MemoryLimit == 0 && s.Apps > 1 {
		o.MemoryLimit = state.DefaultMemoryLimit() / int64(s.Apps)
	}
	if o.BloomFilterBits == 0 {
		o.BloomFilterBits = -1 // none; the package's 0 is its default
	}
	for _, e := range cfg.Explain() {
		if e.Key == "storeRocksdbBlockCacheCompressedSize" && e.Source != "default" {
			o.BlockCacheCompressedSize = s.BlockCacheCompressedSize
		}
	}
	for i := range p.Tables {
		if t := &p.Tables[i]; len(t.Options) > 0 {
			o.Tables[t.Name] = t.Options
		}
	}
	return state.OpenDir(o)
}

// CheckOptions finds what the stores would refuse of the options of an app's tables; of all tables with no app.
func CheckOptions(set *manifest.Set, app string) manifest.Errors {
	var names []string
	for _, o := range state.TableOptionNames() {
		names = append(names, o[0])
	}
	var problems manifest.Errors
	for _, t := range set.Tables {
		if app != "" && !t.Of(app) {
			continue
		}
		for _, e := range t.Options {
			if err := state.CheckTableOptions(map[string]string{e.Key.V: e.Value.V}); err != nil {
				hint := ""
				if s := manifest.Suggest(e.Key.V, names); s != "" && !strings.EqualFold(strings.ReplaceAll(s, "_", ""), strings.ReplaceAll(e.Key.V, "_", "")) {
					hint = fmt.Sprintf("did you mean %q?", s)
				}
				problems = append(problems, manifest.Error{Pos: e.Key.Pos, ID: manifest.BadTableOption, Text: t.Label() + ": " + err.Error(), Hint: hint})
			}
		}
	}
	return problems
}

var instanceForm = regexp.MustCompile(`^[A-Z0-9]{20,40}$`)

// instanceOf is the name of this process among those of the app, kept in its state directory, which no other process has. Under
// it a restarted process ends at once the transaction that it left open when it was killed.
func instanceOf(dir string) (string, error) {
	path := filepath.Join(dir, "instance")
	content, err := os.ReadFile(path)
	if name := string(bytes.TrimSpace(content)); err == nil && instanceForm.MatchString(name) {
		return name, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the name of this process: %w", err)
	}
	name := rand.Text()
	fresh := path + ".new"
	if err := os.WriteFile(fresh, []byte(name+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep the name of this process: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return "", fmt.Errorf("keep the name of this process: %w", err)
	}
	return name, nil
}
