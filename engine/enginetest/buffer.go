// Package enginetest holds what tests of several packages share.
package enginetest

import (
	"strings"
	"sync"
)

// Buffer is a buffer that something running writes and the test reads meanwhile.
type Buffer struct {
	mu sync.Mutex
	b  strings.Builder // guarded by mu
}

func (l *Buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Reset forgets what was written.
func (l *Buffer) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}
