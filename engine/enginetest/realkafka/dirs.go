//go:build integration

package realkafka

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
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

//go:embed pom.xml
var pom []byte

// jarSums names every jar with its checksum, as sha256sum prints them.
//
//go:embed jars.sha256
var jarSums []byte

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

func cacheDir() (string, error) { return CacheDir("realkafka") }

// jars returns the folder with the broker's jars.
func jars(ctx context.Context) (string, error) { return FetchJars(ctx, pom, jarSums) }

// FetchJars returns a folder of the cache with the jars that a pom.xml resolves to; the first call of all fetches them. sums names
// each with its checksum, as sha256sum prints them; with KASPR_REWRITE=1 the file jars.sha256 is written instead, into the
// folder where the test runs.
func FetchJars(ctx context.Context, pom, sums []byte) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(slices.Concat(pom, sums))
	dir := filepath.Join(cache, "jars-"+hex.EncodeToString(sum[:8]))
	lock, err := lockFile(dir+".lock", syscall.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	for _, tool := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("%w: make deps installs it", err)
		}
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return "", err
	}
	pomFile := fresh + ".pom.xml"
	if err := os.WriteFile(pomFile, pom, 0o644); err != nil {
		return "", err
	}
	defer os.Remove(pomFile)
	out, err := exec.CommandContext(ctx, "mvn", "-q", "-B", "-f", pomFile,
		"dependency:copy-dependencies", "-DoutputDirectory="+fresh).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("fetch the jars: %w\n%s", err, out)
	}
	if err := checkJars(fresh, sums); err != nil {
		return "", err
	}
	return dir, os.Rename(fresh, dir)
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

// newDir makes a broker's directory and holds its lock. Directories whose owner is dead are removed on the way: a test
// binary that was killed cannot clean up after itself.
func newDir() (string, *os.File, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", nil, err
	}
	left, err := filepath.Glob(filepath.Join(cache, "broker-*"))
	if err != nil {
		return "", nil, err
	}
	for _, dir := range left {
		if lock, err := lockFile(filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			_ = os.RemoveAll(dir)
			_ = lock.Close()
		}
	}
	dir, err := os.MkdirTemp(cache, "broker-")
	if err != nil {
		return "", nil, err
	}
	lock, err := lockFile(filepath.Join(dir, "lock"), syscall.LOCK_EX)
	if err != nil {
		return "", nil, err
	}
	return dir, lock, nil
}

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
