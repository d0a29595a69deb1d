//go:build integration

package child

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// CacheDir is a folder of the project's cache, the Makefile's and the engine's too.
func CacheDir(name string) (string, error) {
	dir := os.Getenv("KASPR_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(user, "kaspr")
	}
	dir = filepath.Join(dir, name)
	return dir, os.MkdirAll(dir, 0o755)
}

// Jars returns a folder of the cache with the jars that a pom.xml resolves to; the first call of all fetches them. sums names
// each with its checksum, as sha256sum prints them; with KASPR_REWRITE=1 the file jars.sha256 is written instead, into the
// folder where the test runs.
func Jars(ctx context.Context, pom, sums []byte) (string, error) {
	return cached("jars", slices.Concat(pom, sums), func(fresh string) error {
		pomFile := fresh + ".pom.xml"
		if err := os.WriteFile(pomFile, pom, 0o644); err != nil {
			return err
		}
		defer os.Remove(pomFile)
		if err := maven(ctx, "-f", pomFile, "dependency:copy-dependencies", "-DoutputDirectory="+fresh); err != nil {
			return err
		}
		return checkJars(fresh, sums)
	})
}

// Archive returns a folder of the cache with what an archive of Maven's holds: artifact is group:name:version:tar.gz:classifier, sum
// its checksum. The first call of all fetches it.
func Archive(ctx context.Context, artifact, sum string) (string, error) {
	return cached("archives", []byte(artifact+sum), func(fresh string) error {
		download, err := os.MkdirTemp(filepath.Dir(fresh), "download-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(download)
		// Later versions of the plugin also want the artifact's parent pom, which is of no use here and not on every mirror.
		const copyPlugin = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy"
		if err := maven(ctx, copyPlugin, "-Dartifact="+artifact, "-DoutputDirectory="+download); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(download, "*.tar.gz"))
		if err != nil || len(files) != 1 {
			return fmt.Errorf("%s gave %d archives: %w", artifact, len(files), err)
		}
		got, err := fileSum(files[0])
		if err != nil {
			return err
		}
		if got != sum {
			return fmt.Errorf("%s: checksum %s, pinned %s", artifact, got, sum)
		}
		if out, err := exec.CommandContext(ctx, "tar", "-xzf", files[0], "-C", fresh).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w\n%s", artifact, err, out)
		}
		return nil
	})
}

// cached returns the folder kind-HASH of the cache, the hash being that of what it is made from; fill makes it, once for all processes.
func cached(kind string, from []byte, fill func(fresh string) error) (string, error) {
	cache, err := CacheDir("java")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(from)
	dir := filepath.Join(cache, kind+"-"+hex.EncodeToString(sum[:8]))
	lock, err := lockFile(dir+".lock", syscall.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return "", err
	}
	if err := fill(fresh); err != nil {
		return "", err
	}
	return dir, os.Rename(fresh, dir)
}

func maven(ctx context.Context, args ...string) error {
	for _, tool := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: make deps installs it", err)
		}
	}
	out, err := exec.CommandContext(ctx, "mvn", append([]string{"-q", "-B"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fetch from Maven: %w\n%s", err, out)
	}
	return nil
}

// checkJars compares the fetched jars with their checksums: the same set, the same bytes.
func checkJars(dir string, sums []byte) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.jar"))
	if err != nil {
		return err
	}
	var got bytes.Buffer
	for _, file := range files {
		sum, err := fileSum(file)
		if err != nil {
			return err
		}
		fmt.Fprintf(&got, "%s  %s\n", sum, filepath.Base(file))
	}
	if os.Getenv("KASPR_REWRITE") == "1" {
		return os.WriteFile("jars.sha256", got.Bytes(), 0o644)
	}
	want := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(sums)); lines.Scan(); {
		if sum, name, ok := strings.Cut(lines.Text(), "  "); ok {
			want[name] = sum
		}
	}
	var problems []error
	for lines := bufio.NewScanner(&got); lines.Scan(); {
		sum, name, _ := strings.Cut(lines.Text(), "  ")
		if want[name] != sum {
			problems = append(problems, fmt.Errorf("%s: checksum %s, pinned %q", name, sum, want[name]))
		}
		delete(want, name)
	}
	for name := range want {
		problems = append(problems, fmt.Errorf("%s: not there", name))
	}
	return errors.Join(problems...)
}

func fileSum(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// A Dir is the folder of one server and the lock that says that its owner lives.
type Dir struct {
	Path string
	Keys // of a server with TLS
	lock *os.File
}

// NewDir makes a folder for a server of a kind. Folders whose owner is dead are removed on the way: a test binary that was killed
// cannot clean up after itself.
func NewDir(kind string) (*Dir, error) {
	cache, err := CacheDir("java")
	if err != nil {
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(cache, kind+"-run-*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range left {
		if lock, err := lockFile(filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			_ = os.RemoveAll(dir)
			_ = lock.Close()
		}
	}
	dir, err := os.MkdirTemp(cache, kind+"-run-")
	if err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(dir, "lock"), syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return &Dir{Path: dir, Keys: Keys(dir), lock: lock}, nil
}

// Remove removes the folder. It may be called twice.
func (d *Dir) Remove() {
	if d.lock != nil {
		_ = os.RemoveAll(d.Path)
		_ = d.lock.Close()
		d.lock = nil
	}
}

// File is the path of a file in it.
func (d *Dir) File(name string) string { return filepath.Join(d.Path, name) }

func lockFile(name string, how int) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
