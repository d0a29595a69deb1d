package state

import (
	"math"
	"os"
	"path"
	"strconv"
	"strings"
)

// ContainerMemory is the memory limit of the container (control group, version 1 or 2) this process runs in; false when it
// has none.
func ContainerMemory() (int64, bool) { return containerMemory("/") }

// containerMemory is ContainerMemory with another root folder. A limit higher up in the hierarchy binds too.
func containerMemory(root string) (int64, bool) {
	groups, err := os.ReadFile(path.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0, false
	}
	limit := int64(math.MaxInt64)
	for line := range strings.Lines(string(groups)) {
		// hierarchy:controllers:path; version 2 has hierarchy 0 and no controllers
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		mount, file := "sys/fs/cgroup", "memory.max"
		if f[0] != "0" || f[1] != "" {
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
			if !strings.Contains(","+f[1]+",", ",memory,") {
				continue
			}
		}
		// Within a container the path may be the host's, and not be there: its root is then what is mounted.
		for p := path.Clean("/" + f[2]); ; p = path.Dir(p) {
			if b, err := os.ReadFile(path.Join(root, mount, p, file)); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 {
					limit = min(limit, n)
				}
			}
			if p == "/" {
				break
			}
		}
	}
	// Version 1 says "no limit" with the largest multiple of a page.
	return limit, limit < 1<<60
}
