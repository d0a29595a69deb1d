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

func libraryMount(zip []byte) wazero.FSConfig {
	readOnly := &sysfs.ReadFS{FS: &sysfs.AdaptFS{FS: libraryFS(zip)}}
	return wazero.NewFSConfig().(sysfs.FSConfig).WithSysFSMount(readOnly, libraryDir)
}

// libraryFS holds one read-only file, the zip of the standard library. It may be used by many instances at once.
type libraryFS []byte

func (l libraryFS) Open(name string) (fs.File, error) {
	switch name {
	case ".":
		return &libraryRoot{l: l}, nil
	case libraryFile:
		return &openLibrary{Reader: *bytes.NewReader(l), size: int64(len(l))}, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

type openLibrary struct {
	bytes.Reader
	size int64
}

func (f *openLibrary) Stat() (fs.FileInfo, error) {
	return libraryInfo{libraryFile, f.size, 0o444}, nil
}
func (f *openLibrary) Close() error { return nil }

type libraryRoot struct {
	l    libraryFS
	read bool
}

func (d *libraryRoot) Stat() (fs.FileInfo, error) {
	return libraryInfo{".", 0, fs.ModeDir | 0o555}, nil
}
func (d *libraryRoot) Close() error { return nil }

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
	return []fs.DirEntry{fs.FileInfoToDirEntry(libraryInfo{libraryFile, int64(len(d.l)), 0o444})}, nil
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

// lineWriter hands whole lines to log. Python's own print does not come here; messages of the C library do.
type lineWriter struct {
	log  func(line string)
	rest []byte
}

const lineBytesMax = 64 << 10

func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 && len(w.rest)+len(p) < lineBytesMax {
			w.rest = append(w.rest, p...)
			break
		}
		end, next := i, i+1
		if i < 0 {
			end, next = len(p), len(p)
		}
		w.log(string(append(w.rest, p[:end]...)))
		w.rest = w.rest[:0]
		p = p[next:]
	}
	return n, nil
}
