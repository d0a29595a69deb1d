"""Files for tests, since the guest has none: the zip's, which cannot be changed, and others in memory.

install() replaces open and the functions of os that tests and the library reach files with. Only io.FileIO and what is
built on it in C do not see them.
"""

import builtins
import errno
import io
import os
import posix
import stat
import sys
import tempfile
import time
import tokenize

import _io

HOME = "/lib/stdlib.zip"
FIRST_FD = 1000


def _error(number, path):
    return OSError(number, os.strerror(number), path)  # becomes FileNotFoundError and so on


class _Files:
    def __init__(self, loader):
        self.loader = loader
        self.packed = set()  # files in the zip
        self.nodes = {"/": None, "/tmp": None, "/work": None, "/lib": None, HOME: None}  # None: a folder; else bytearray
        self.modified = {}
        self.changes = 0  # of what exists: the time of change of all folders, which the import system looks at
        self.cwd = "/work"
        self.open_files = {}  # fd: _Open
        self.next_fd = FIRST_FD
        for name in loader._get_files():
            self.packed.add(f"{HOME}/{name}")
            while "/" in name:
                name = name.rpartition("/")[0]
                self.nodes[f"{HOME}/{name}"] = None
        self.packed -= {f"{name}/" for name in self.nodes}

    def path(self, path):
        path = os.fsdecode(path)
        if "\0" in path:
            raise ValueError("embedded null byte")
        if not path:
            raise _error(errno.ENOENT, path)
        return os.path.normpath(os.path.join(self.cwd, path))

    def parent(self, path, name):
        above = os.path.dirname(path)
        if above in self.packed or self.nodes.get(above, self) is not None and above in self.nodes:
            raise _error(errno.ENOTDIR, name)
        if above not in self.nodes:
            raise _error(errno.ENOENT, name)
        if above.startswith(HOME):
            raise _error(errno.EROFS, name)

        self.changes += 1

    def data(self, path, name):
        if path in self.packed:
            return self.loader.get_data(path)
        if path not in self.nodes:
            raise _error(errno.ENOENT, name)
        if self.nodes[path] is None:
            raise _error(errno.EISDIR, name)
        return self.nodes[path]

    def children(self, path, name):
        if path in self.packed or self.nodes.get(path) is not None:
            raise _error(errno.ENOTDIR, name)
        if path not in self.nodes:
            raise _error(errno.ENOENT, name)
        head = path.rstrip("/") + "/"
        return sorted({n[len(head):] for n in (*self.nodes, *self.packed)
                       if n.startswith(head) and "/" not in n[len(head):]} - {""})

    # -- functions of os

    def open(self, path, flags, mode=0o777, *, dir_fd=None):
        full = self.path(path)
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        exists = full in self.packed or full in self.nodes
        if not exists and flags & os.O_CREAT:
            self.parent(full, path)
            self.nodes[full] = bytearray()
        elif exists and flags & os.O_CREAT and flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        data = self.data(full, path)
        if writing and full in self.packed:
            raise _error(errno.EROFS, path)
        if flags & os.O_TRUNC:
            del data[:]
        fd, self.next_fd = self.next_fd, self.next_fd + 1
        self.modified.setdefault(full, time.time_ns())
        self.open_files[fd] = _Open(full, data, bool(flags & os.O_APPEND))
        return fd

    def file(self, fd):
        file = self.open_files.get(fd)
        if file is None:
            raise _error(errno.EBADF, fd)
        return file

    def close(self, fd):
        self.file(fd)
        del self.open_files[fd]

    def read(self, fd, n):
        file = self.file(fd)
        data = bytes(file.data[file.at:file.at + n])
        file.at += len(data)
        return data

    def write(self, fd, data):
        file = self.file(fd)
        data = bytes(data)
        if file.append:
            file.at = len(file.data)
        file.data.extend(bytes(max(0, file.at - len(file.data))))
        file.data[file.at:file.at + len(data)] = data
        file.at += len(data)
        self.modified[file.path] = time.time_ns()
        return len(data)

    def lseek(self, fd, offset, whence):
        file = self.file(fd)
        at = offset + (0, file.at, len(file.data))[whence]
        if at < 0:
            raise _error(errno.EINVAL, None)
        file.at = at
        return at

    def fsync(self, fd):
        self.file(fd)

    def ftruncate(self, fd, size):
        data = self.file(fd).data
        data.extend(bytes(max(0, size - len(data))))
        del data[size:]

    def fstat(self, fd):
        file = self.file(fd)
        return self._stat_result(stat.S_IFREG | 0o644, len(file.data), self.modified.get(file.path, 0))

    def _stat_result(self, mode, size, ns=0):
        s = ns // 10**9
        return os.stat_result((mode, 0, 0, 1, 0, 0, size, s, s, s), {
            "st_mtime": ns / 1e9, "st_mtime_ns": ns, "st_atime_ns": ns, "st_blksize": 4096})

    def stat(self, path, *, dir_fd=None, follow_symlinks=True):
        full = self.path(path)
        if full in self.packed:
            return self._stat_result(stat.S_IFREG | 0o444, len(self.loader.get_data(full)))
        if full not in self.nodes:
            above = os.path.dirname(full)
            raise _error(errno.ENOTDIR if self.nodes.get(above) is not None or above in self.packed else errno.ENOENT, path)
        node = self.nodes[full]
        if node is None:
            return self._stat_result(stat.S_IFDIR | 0o755, 0, self.changes * 10**9)
        return self._stat_result(stat.S_IFREG | 0o644, len(node), self.modified.get(full, 0))

    def lstat(self, path, *, dir_fd=None):
        return self.stat(path)

    def access(self, path, mode, *, dir_fd=None, effective_ids=False, follow_symlinks=True):
        try:
            self.stat(path)
        except OSError:
            return False
        return True

    def listdir(self, path="."):
        return self.children(self.path(path), path)

    def scandir(self, path="."):
        return _Scan([_Entry(self, path, name) for name in self.children(self.path(path), path)])

    def mkdir(self, path, mode=0o777, *, dir_fd=None):
        full = self.path(path)
        if full in self.packed or full in self.nodes:
            raise _error(errno.EEXIST, path)
        self.parent(full, path)
        self.nodes[full] = None

    def rmdir(self, path, *, dir_fd=None):
        full = self.path(path)
        if self.children(full, path):
            raise _error(errno.ENOTEMPTY, path)
        self.parent(full, path)
        del self.nodes[full]

    def unlink(self, path, *, dir_fd=None):
        full = self.path(path)
        self.data(full, path)
        self.parent(full, path)
        del self.nodes[full]

    def rename(self, path, to, *, src_dir_fd=None, dst_dir_fd=None):
        full, target = self.path(path), self.path(to)
        data = self.data(full, path)
        self.parent(target, to)
        self.nodes[target] = data
        del self.nodes[full]

    def utime(self, path, times=None, *, ns=None, dir_fd=None, follow_symlinks=True):
        self.stat(path)
        if ns is None:
            ns = (time.time_ns(),) * 2 if times is None else [round(t * 1e9) for t in times]
        self.modified[self.path(path)] = ns[1]

    def chmod(self, path, mode, *, dir_fd=None, follow_symlinks=True):
        self.stat(path)

    def getcwd(self):
        return self.cwd

    def getcwdb(self):
        return self.cwd.encode()

    def chdir(self, path):
        self.children(self.path(path), path)
        self.cwd = self.path(path)


class _Open:
    def __init__(self, path, data, append):
        self.path, self.data, self.append, self.at = path, data, append, 0


class _Entry:
    def __init__(self, files, folder, name):
        self.files, self.name = files, name
        self.path = os.path.join(folder, name)

    def stat(self, *, follow_symlinks=True):
        return self.files.stat(self.path)

    def is_dir(self, *, follow_symlinks=True):
        return stat.S_ISDIR(self.stat().st_mode)

    def is_file(self, *, follow_symlinks=True):
        return stat.S_ISREG(self.stat().st_mode)

    def is_symlink(self):
        return False

    is_junction = is_symlink

    def __fspath__(self):
        return self.path


class _Scan:
    def __init__(self, entries):
        self.entries = iter(entries)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.entries)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.entries = iter(())


class _Raw(io.RawIOBase):
    """What io.FileIO is to real files."""

    def __init__(self, files, file, mode, closefd, opener):
        self._files, self.closefd, self.name = files, closefd, file
        self.mode = mode[0] + "b" + mode[1:]
        flags = {"r": os.O_RDONLY, "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
                 "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND}[mode[0]]
        if "+" in mode:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
        self._reads, self._writes = "r" in mode or "+" in mode, "r" not in mode or "+" in mode
        self._fd = -1
        if isinstance(file, int):
            self._fd = file
        elif not closefd:
            raise ValueError("Cannot use closefd=False with file name")
        elif opener is not None:
            self._fd = opener(file, flags)
        else:
            self._fd = files.open(file, flags, 0o666)
        if mode[0] == "a":
            files.lseek(self._fd, 0, 2)

    def _check(self, able, what):
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not able:
            raise io.UnsupportedOperation(f"File not open for {what}")

    def fileno(self):
        self._check(True, "")
        return self._fd

    def readable(self):
        self._check(True, "")
        return self._reads

    def writable(self):
        self._check(True, "")
        return self._writes

    def seekable(self):
        self._check(True, "")
        return True

    def isatty(self):
        self._check(True, "")
        return False

    def readinto(self, buffer):
        self._check(self._reads, "reading")
        view = memoryview(buffer).cast("B")
        data = self._files.read(self._fd, len(view))
        view[:len(data)] = data
        return len(data)

    def write(self, data):
        self._check(self._writes, "writing")
        return self._files.write(self._fd, memoryview(data).cast("B"))

    def seek(self, offset, whence=0):
        self._check(True, "")
        return self._files.lseek(self._fd, offset, whence)

    def truncate(self, size=None):
        self._check(self._writes, "writing")
        if size is None:
            size = self.tell()
        self._files.ftruncate(self._fd, size)
        return size

    def close(self):
        if not self.closed:
            try:
                super().close()
            finally:
                if self.closefd and self._fd in self._files.open_files:
                    self._files.close(self._fd)

    def __del__(self):
        if not self.closed:
            import warnings
            warnings.warn(f"unclosed file {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()


class _OpenFunction:
    """open; an object, since a function would become a method in the classes of tests."""

    def __init__(self, files, real):
        self.files, self.real = files, real
        self.__name__, self.__doc__, self.__module__ = "open", real.__doc__, "_io"

    def __call__(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        ours = file in self.files.open_files if isinstance(file, int) else isinstance(file, (str, bytes, os.PathLike)) and file != HOME
        kind = mode.replace("b", "").replace("t", "") if isinstance(mode, str) else ""
        text = "b" not in mode if kind else True
        if not ours or kind.replace("+", "", 1) not in ("r", "w", "x", "a") or len(set(mode)) != len(mode) or {"b", "t"} <= set(mode) \
                or not text and (encoding, errors, newline) != (None, None, None) or text and buffering == 0 or not isinstance(buffering, int):
            return self.real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if text:
            encoding = io.text_encoding(encoding)
        raw = _Raw(self.files, file if isinstance(file, int) else os.fspath(file), kind, closefd, opener)
        try:
            return self._over(raw, mode, kind, text, buffering, encoding, errors, newline)
        except BaseException:
            raw.close()
            raise

    @staticmethod
    def _over(raw, mode, kind, text, buffering, encoding, errors, newline):
        if buffering == 0:
            return raw
        cls = io.BufferedRandom if "+" in kind else io.BufferedReader if kind == "r" else io.BufferedWriter
        buffered = cls(raw, buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)
        if not text:
            return buffered
        wrapper = io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)
        wrapper.mode = mode
        return wrapper


def install(loader):
    files = _Files(loader)
    builtins.open = io.open = _io.open = tokenize._builtin_open = _OpenFunction(files, builtins.open)
    _io.open_code = io.open_code = lambda path: builtins.open(path, "rb")

    def put(name, function):
        setattr(os, name, function)
        # The import system has posix where others have os. It must go on to see the zip as a zip.
        real = getattr(posix, name)
        setattr(posix, name, lambda path=".", *args, **options:
                (real if isinstance(path, str) and path.startswith(HOME) else function)(path, *args, **options))

    def by_fd(name, ours):
        real = getattr(os, name)

        def call(fd, *args):
            if isinstance(fd, int) and fd >= FIRST_FD:
                return ours(fd, *args)
            return real(fd, *args)
        put(name, call)

    for name in ("close", "read", "write", "lseek", "ftruncate", "fstat", "fsync"):
        by_fd(name, getattr(files, name))

    def by_path(name, ours):
        real = getattr(os, name)

        def call(path, *args, **options):
            if not isinstance(path, int):
                return ours(path, *args, **options)
            if path in files.open_files and name == "stat":
                return files.fstat(path)
            return real(path, *args, **options)
        put(name, call)

    for name in ("open", "stat", "lstat", "access", "mkdir", "rmdir", "unlink", "rename", "utime", "chmod", "chdir"):
        by_path(name, getattr(files, name))
    os.remove, os.replace = os.unlink, os.rename
    for name in ("listdir", "scandir"):
        put(name, getattr(files, name))
    os.getcwd = posix.getcwd = files.getcwd
    os.getcwdb = posix.getcwdb = files.getcwdb
    for name in ("zoneinfo", "zoneinfo._common", "zoneinfo._tzpath", "_zoneinfo"):  # keeps the open it found
        sys.modules.pop(name, None)
    tempfile.tempdir = "/tmp"
    if "shutil" in sys.modules:
        sys.modules["shutil"]._use_fd_functions = False
