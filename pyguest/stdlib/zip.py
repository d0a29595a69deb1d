"""Writes the guest's standard library: one stored zip of compiled modules.

    zip.py base DIR    DIR/base.zip: Lib without what the file exclude names, the overlay, tzdata, _sysconfigdata
    zip.py final DIR   DIR/stdlib.zip: the base and every module of pyguest/runtime at the top level

Stored, so that the guest needs no zlib to import; .pyc with an unchecked hash, so that it never looks for a source or a
time stamp. Equal input gives equal bytes. Code knows itself as MOUNT/<path>.py, which is what tracebacks show.
"""
import concurrent.futures
import fnmatch
import hashlib
import os
import pathlib
import py_compile
import sys
import tempfile
import time
import zipfile

MOUNT = "/lib/stdlib.zip"


def compiled(source, name):
    """The bytes of the .pyc of source, which is called name in the zip."""
    with tempfile.TemporaryDirectory() as tmp:
        out = os.path.join(tmp, "out.pyc")
        py_compile.compile(
            str(source), out, dfile=f"{MOUNT}/{name}", doraise=True, optimize=0,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        return pathlib.Path(out).read_bytes()


def entry(job):
    """(name in the zip, bytes) of one file; sources are compiled."""
    source, name = job
    if name.endswith(".py"):
        return name + "c", compiled(source, name)
    return name, pathlib.Path(source).read_bytes()


def entries(jobs):
    with concurrent.futures.ProcessPoolExecutor() as pool:
        return dict(pool.map(entry, jobs, chunksize=16))


def modules(root):
    return {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*.py"))}


def write(path, files):
    stamp = max(time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"]))[:6], (1980, 1, 1, 0, 0, 0))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as z:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, stamp)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            z.writestr(info, files[name])


def excluded(name, patterns):
    """Whether a pattern fits name or a folder above it; the last one that does decides."""
    parts = name.split("/")
    heads = ["/".join(parts[:i + 1]) for i in range(len(parts))]
    out = False
    for p in patterns:
        if any(fnmatch.fnmatchcase(h, p.removeprefix("!")) for h in heads):
            out = not p.startswith("!")
    return out


def base(here, dir):
    lib = pathlib.Path(os.environ["SOURCES"], "cpython", "Lib")
    lines = here.joinpath("stdlib", "exclude").read_text().splitlines()
    patterns = [l.strip() for l in lines if l.strip() and not l.startswith("#")]
    for p in patterns:
        if not any(lib.glob(p.removeprefix("!"))):
            sys.exit(f"zip.py: exclude names {p}, which Lib does not have")
    files = {n: p for n, p in modules(lib).items() if not excluded(n, patterns)}
    files |= modules(here / "stdlib" / "overlay")
    files |= modules(pathlib.Path(os.environ["CROSS"], "sysconfig"))
    tz = pathlib.Path(os.environ["SOURCES"], "tzdata")
    files |= {p.relative_to(tz).as_posix(): p for p in (tz / "tzdata").rglob("*") if p.is_file()}
    write(dir / "base.zip", entries((p, n) for n, p in sorted(files.items())))


def final(here, dir):
    with zipfile.ZipFile(os.path.join(os.environ["LIBBASE"], "base.zip")) as z:
        files = {i.filename: z.read(i) for i in z.infolist()}
    for name, path in modules(here / "runtime").items():
        files[name + "c"] = compiled(path, name)
    out = dir / "stdlib.zip"
    write(out, files)
    data = out.read_bytes()
    for secret in (os.environ["CACHE"], os.environ["PYGUEST"], os.environ.get("HOME", "/nonexistent") + "/"):
        if secret.encode() in data:
            sys.exit(f"zip.py: the zip contains the path {secret}")
    (dir / "sha256").write_text(hashlib.sha256(data).hexdigest() + "\n")


if __name__ == "__main__":
    mode, target = sys.argv[1:]
    {"base": base, "final": final}[mode](pathlib.Path(os.environ["PYGUEST"]), pathlib.Path(target))
