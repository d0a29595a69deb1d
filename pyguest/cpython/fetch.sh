#!/usr/bin/env bash
# fetch.sh DIR: installs the compiler and fills DIR with sources and sysroot. Called by build.sh, which sets the pins' names.
#   DIR/cpython     CPython's source, patched         DIR/toolchain/bin/wasm-cc  clang for the target
#   DIR/zlib        zlib's source                     DIR/sysroot                wasi-libc
#   DIR/tzdata      the tzdata Python package
# Downloads are kept in CACHE/downloads under their checksum and are verified on every use.
set -euo pipefail
dir=$1
. "$PYGUEST/cpython/pins"
downloads=$CACHE/downloads
mkdir -p "$downloads"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# The compiler comes from the machine's own packages.
builtins() {
    local resource f
    resource=$("clang-$LLVM" -print-resource-dir)
    for f in "$resource"/lib/{wasi/libclang_rt.builtins-wasm32.a,wasm32-unknown-wasip1/libclang_rt.builtins.a,wasm32-unknown-wasi/libclang_rt.builtins.a}; do
        [ -f "$f" ] && { echo "$f"; return; }
    done
    return 1
}
have_tools() {
    local tool
    for tool in "clang-$LLVM" "wasm-ld-$LLVM" "llvm-ar-$LLVM" "llvm-ranlib-$LLVM" make patch xz python3; do
        command -v "$tool" >/dev/null || return 1
    done
    [ -f /usr/include/stdio.h ] && [ -f /etc/ssl/certs/ca-certificates.crt ] && builtins >/dev/null
}
if ! have_tools; then
    root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    # Its own archive folder: container images delete /var/cache/apt/archives between the steps of one installation.
    mkdir -p "$tmp/archives/partial"
    install=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 -o "Dir::Cache::archives=$tmp/archives")
    "${root[@]}" "${install[@]}" update
    "${root[@]}" "${install[@]}" install -y --no-install-recommends "clang-$LLVM" "lld-$LLVM" "llvm-$LLVM" \
        "libclang-rt-$LLVM-dev-wasm32" "libclang-common-$LLVM-dev" libc6-dev make patch xz-utils python3 ca-certificates \
        debian-archive-keyring
    have_tools
fi

good() { [ -f "$1" ] && echo "$2  $1" | sha256sum -c --quiet - 2>/dev/null; }

# from_apt FILE SHA256 COMMAND...: COMMAND is an apt-get call; of what it would download, FILE is taken if the checksum fits.
from_apt() {
    local file=$1 sha=$2 to=$downloads/$2-$1 uri
    shift 2
    good "$to" "$sha" && return
    if [ ! -f "$tmp/apt/apt.conf" ]; then
        "$PYGUEST/cpython/private-apt.sh" "$SUITE" "$tmp/apt"
        echo "the apt directory of $SUITE is ready"
    fi
    export APT_CONFIG=$tmp/apt/apt.conf
    # Lines of --print-uris: 'URI' file size checksum.
    uri=$("$@" | sed -n "s/^'\([^']*\)' .*/\1/p" | while IFS= read -r u; do
        name=${u##*/} name=${name//%2b/+} name=${name//%7e/\~} name=${name//%3a/:}
        [ "$name" = "${file//:/%3a}" ] || [ "$name" = "$file" ] && { echo "$u"; break; }
    done)
    [ -n "$uri" ] || { echo "fetch: $SUITE has no $file" >&2; return 1; }
    rm -f "$to"
    /usr/lib/apt/apt-helper download-file "$uri" "$tmp/file" "SHA256:$sha"
    good "$tmp/file" "$sha" || { echo "fetch: $file has the wrong checksum" >&2; return 1; }
    cp "$tmp/file" "$to.new" && mv "$to.new" "$to" && rm -f "$tmp/file"
}
# Every revision the suite has of a source package, newest first: one of them has the tarball we pin.
source_uris() {
    local version
    apt-cache showsrc --only-source "$1" | sed -n 's/^Version: //p' | sort -rVu | while IFS= read -r version; do
        apt-get -qq source --print-uris --only-source "$1=$version"
    done
}
from_apt "$CPYTHON_FILE" "$CPYTHON_SHA256" source_uris "$CPYTHON_PACKAGE"
from_apt "$ZLIB_FILE" "$ZLIB_SHA256" source_uris "$ZLIB_PACKAGE"
libc=wasi-libc_${WASI_LIBC_VERSION}_all.deb
from_apt "$libc" "$WASI_LIBC_SHA256" apt-get -qq download --print-uris "wasi-libc=$WASI_LIBC_VERSION"

mkdir "$dir/cpython" "$dir/zlib" "$dir/sysroot"
tar -xJf "$downloads/$CPYTHON_SHA256-$CPYTHON_FILE" -C "$dir/cpython" --strip-components=1 --no-same-owner
tar -xzf "$downloads/$ZLIB_SHA256-$ZLIB_FILE" -C "$dir/zlib" --strip-components=1 --no-same-owner
dpkg -x "$downloads/$WASI_LIBC_SHA256-$libc" "$dir/unpacked"
mv "$dir/unpacked/usr"/* "$dir/sysroot/"
rm -r "$dir/unpacked"
for p in "$PYGUEST"/cpython/patches/*.patch; do
    [ -e "$p" ] || continue
    patch -d "$dir/cpython" -p1 --no-backup-if-mismatch <"$p"
done

# tzdata through pip, as this machine has configured it; CPython's source brings a pip that any python3 can run.
wheel=tzdata-$TZDATA_VERSION-py2.py3-none-any.whl
if ! good "$downloads/$TZDATA_SHA256-$wheel" "$TZDATA_SHA256"; then
    echo "tzdata==$TZDATA_VERSION --hash=sha256:$TZDATA_SHA256" >"$tmp/requirements"
    pip=("$dir"/cpython/Lib/ensurepip/_bundled/pip-*.whl)
    (cd "$tmp" && python3 "${pip[0]}/pip" --disable-pip-version-check --no-cache-dir download --no-deps --only-binary :all: \
        --require-hashes -r requirements -d "$tmp")
    good "$tmp/$wheel" "$TZDATA_SHA256"
    mv "$tmp/$wheel" "$downloads/$TZDATA_SHA256-$wheel"
fi
python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])' "$downloads/$TZDATA_SHA256-$wheel" "$dir/tzdata"

# wasm-cc: clang with everything it needs to know. The driver looks for its builtins where Debian does not put them.
mkdir -p "$dir/toolchain/bin" "$dir/toolchain/clang/lib/wasm32-unknown-wasip1"
ln -s "$("clang-$LLVM" -print-resource-dir)/include" "$dir/toolchain/clang/include"
cp "$(builtins)" "$dir/toolchain/clang/lib/wasm32-unknown-wasip1/libclang_rt.builtins.a"
cat >"$dir/toolchain/bin/wasm-cc" <<CC
#!/bin/sh
exec clang-$LLVM --target=wasm32-wasip1 --sysroot="$dir/sysroot" -resource-dir="$dir/toolchain/clang" \\
    -ffile-prefix-map="$dir/cpython=cpython" -ffile-prefix-map="$dir/sysroot=sysroot" "\$@"
CC
for tool in ar ranlib nm; do
    printf '#!/bin/sh\nexec llvm-%s-%s "$@"\n' "$tool" "$LLVM" >"$dir/toolchain/bin/wasm-$tool"
done
chmod +x "$dir"/toolchain/bin/*
