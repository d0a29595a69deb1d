package wasmhost

import (
	"bytes"
	"io"
	"io/fs"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental/sysfs"
)

// Where the guest finds the standard library. It sees no other file.
const (
	libraryDir  = "/lib"
	libraryFile = "stdlib.zip"
)

// filesMax is how many files an instance may have open. Each is some memory of the host's, which no limit of the instance's counts.
const filesMax = 64

func (l *libraryFS) mount() wazero.FSConfig {
	readOnly := &sysfs.ReadFS{FS: &sysfs.AdaptFS{FS: l}}
	return wazero.NewFSConfig().(sysfs.FSConfig).WithSysFSMount(readOnly, libraryDir)
}

// libraryFS holds one read-only file, the zip of the standard library. It is one instance's.
type libraryFS struct {
	zip  []byte
	open int // files that are; wazero keeps the folder open once it was listed
}

func (l *libraryFS) Open(name string) (fs.File, error) {
	err := fs.ErrNotExist
	switch {
	case name != "." && name != libraryFile:
	case l.open >= filesMax:
		err = fs.ErrPermission // wazero knows no EMFILE
	case name == ".":
		l.open++
		return &libraryRoot{l: l}, nil
	default:
		l.open++
		return &openLibrary{*bytes.NewReader(l.zip), l}, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: err}
}

type openLibrary struct {
	bytes.Reader
	l *libraryFS
}

func (f *openLibrary) Stat() (fs.FileInfo, error) {
	return libraryInfo{libraryFile, f.Size(), 0o444}, nil
}

func (f *openLibrary) Close() error {
	f.l.open--
	return nil
}

type libraryRoot struct {
	l    *libraryFS
	read bool
}

func (d *libraryRoot) Stat() (fs.FileInfo, error) {
	return libraryInfo{".", 0, fs.ModeDir | 0o555}, nil
}

func (d *libraryRoot) Close() error {
	d.l.open--
	return nil
}

func (d *libraryRoot) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: ".", Err: fs.ErrInvalid}
}

func (d *libraryRoot) ReadDir(n int) ([]fs.DirEntry, error) {
	if d.read {
		if n > 0 {
			return nil, io.EOF
		}
		return nil, nil
	}
	d.read = true
	return []fs.DirEntry{fs.FileInfoToDirEntry(libraryInfo{libraryFile, int64(len(d.l.zip)), 0o444})}, nil
}

type libraryInfo struct {
	name string
	size int64
	mode fs.FileMode
}

func (i libraryInfo) Name() string       { return i.name }
func (i libraryInfo) Size() int64        { return i.size }
func (i libraryInfo) Mode() fs.FileMode  { return i.mode }
func (i libraryInfo) ModTime() time.Time { return time.Time{} }
func (i libraryInfo) IsDir() bool        { return i.mode.IsDir() }
func (i libraryInfo) Sys() any           { return nil }

// lineWriter logs whole lines of an instance's. Python's own print does not come here; messages of the C library do.
type lineWriter struct {
	in    *Instance
	level int
	rest  []byte
}

const lineBytesMax = 64 << 10

// Write may be given all of the guest's memory, and that many times in one call of the guest's. No tick comes meanwhile but those of its own.
func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if !w.in.goesOn() {
			return n - len(p), nil // the rest is the guest's to write again, but for what the tick says that follows
		}
		i := bytes.IndexByte(p, '\n')
		if i < 0 && len(w.rest)+len(p) < lineBytesMax {
			w.rest = append(w.rest, p...)
			break
		}
		end, next := i, i+1
		if i < 0 {
			end, next = len(p), len(p)
		}
		w.in.program.Host.Log(w.level, string(append(w.rest, p[:end]...)))
		w.rest = w.rest[:0]
		p = p[next:]
	}
	return n, nil
}
