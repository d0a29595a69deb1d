package state

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// A rocksError is what RocksDB said, with what it means for the store.
type rocksError struct {
	text string
	is   []error // sentinels of this package, errnos
}

func (e *rocksError) Error() string {
	if len(e.is) == 0 {
		return e.text
	}
	return e.is[0].Error() + ": " + e.text
}

func (e *rocksError) Unwrap() []error { return e.is }

// Texts of errnos in RocksDB's messages; all it tells us is a text.
var errnos = []syscall.Errno{
	syscall.ENOSPC, syscall.EIO, syscall.EDQUOT, syscall.EROFS, syscall.EACCES, syscall.EPERM, syscall.EFBIG, syscall.EMFILE,
	syscall.ENFILE, syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.EAGAIN, syscall.ENOMEM,
}

// classify gives a message of RocksDB ("Corruption: …", "IO error: …") its meaning. It is used for calls on a store that exists.
func classify(text string) error {
	e := &rocksError{text: text}
	var errno syscall.Errno
	for _, n := range errnos {
		if said := n.Error(); strings.Contains(strings.ToLower(text), said) {
			errno = n
			break
		}
	}
	lock := strings.Contains(text, "lock ") || strings.Contains(text, "/LOCK:")
	switch {
	case strings.HasPrefix(text, "IO error: ") && lock && (errno == syscall.EAGAIN || errno == syscall.EACCES || strings.Contains(text, "No locks available")):
		e.is = append(e.is, ErrInUse)
	case errno != 0 && errno != syscall.ENOENT && errno != syscall.ENOTDIR && errno != syscall.EISDIR:
		// Also when it is wrapped in a Corruption: a table file that cannot be opened for want of file handles is not corrupt.
		e.is = append(e.is, ErrDisk, errno)
	case errno != 0:
		e.is = append(e.is, ErrCorrupt, errno) // a file that should be there is not
	case strings.HasPrefix(text, "Corruption: "), strings.HasPrefix(text, "NotFound: "):
		e.is = append(e.is, ErrCorrupt)
	case strings.HasPrefix(text, "IO error: "):
		e.is = append(e.is, ErrDisk)
	}
	return e
}

// diskError is the meaning of an error of package os.
func diskError(action string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", action, &rocksError{text: err.Error(), is: []error{ErrDisk, err}})
}

// broken tells whether a store with this error must not be written any more.
func broken(err error) bool { return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrDisk) }
