#!/usr/bin/env bash
# Builds the guest: build/kaspr-python.wasm (CPython linked with glue/*.c), build/stdlib.zip and build/BUILD_ID.
#
#   build.sh                         build what changed (make pyguest)
#   build.sh --print NAME            print a path or flags for other tools; NAMEs in README.md
#   build.sh --glue DIR --out DIR    link other glue to another place: experiments and tests
#   GUEST_NAMES=1 build.sh           keep function names in the wasm (profiles, readable traps)
#   GUEST_LTO=1 build.sh             with link-time optimisation (README.md: why not by default)
#   GUEST_CFLAGS=… build.sh          with more compiler flags everywhere: to measure them
#
# Work is kept in the cache folder as <stage>-<hash of the stage's inputs>; a stage is complete once it holds ".done".
# Every stage hashes the key of the stage before it, so a change only costs itself and what comes after.
set -euo pipefail
export LC_ALL=C TZ=UTC PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1
unset CC CFLAGS CPPFLAGS LDFLAGS LIBS AR RANLIB CONFIG_SITE MAKEFLAGS MAKELEVEL PYTHONPATH PYTHONHOME APT_CONFIG 2>/dev/null || true

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${KASPR_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/kaspr}/pyguest
glue=$here/glue
out=$here/build
print=
while [ $# -gt 0 ]; do
    case $1 in
        --print) print=${2:?--print needs a name}; shift 2 ;;
        --glue) glue=$(cd "$2" && pwd); shift 2 ;;
        --out) mkdir -p "$2"; out=$(cd "$2" && pwd); shift 2 ;;
        *) echo "build.sh: unknown argument $1" >&2; exit 2 ;;
    esac
done

. "$here/cpython/pins"
export SOURCE_DATE_EPOCH
lto=${GUEST_LTO:-0}
names=${GUEST_NAMES:-0}

# key WORD... -- FILE...: a short hash of the words and of the files' contents.
key() {
    local words=()
    while [ "$1" != -- ]; do words+=("$1"); shift; done
    shift
    { printf '%s\n' "${words[@]}"; [ $# -eq 0 ] || sha256sum -- "$@" | cut -d' ' -f1; } | sha256sum | cut -c1-16
}

shopt -s nullglob globstar
glue_c=("$glue"/*.c) glue_all=("$glue"/*.[ch] "$glue"/export[s] "$here"/include/*.h)
runtime=("$here"/runtime/**/*.py)
patches=("$here"/cpython/patches/*.patch)
overlay=("$here"/stdlib/overlay/**/*.py)

# Flags that change code generation of everything on the target.
target_cflags=(-O3 -mbulk-memory -msign-ext -mnontrapping-fptoint ${GUEST_CFLAGS:-})
[ "$lto" = 0 ] || target_cflags+=(-flto=full)

# private-apt.sh is in no key: whatever it finds is verified by checksum.
k_sources=$(key sources -- "$here"/cpython/{pins,fetch.sh} "${patches[@]}")
k_native=$(key native "$k_sources" -- "$here"/cpython/native.sh)
k_cross=$(key cross "$k_native" "${target_cflags[*]}" -- "$here"/cpython/cross.sh)
k_link=$(key link "$k_cross" "$names" "${glue_all[@]##*/}" -- "$here"/cpython/link.sh "${glue_all[@]}")
k_libbase=$(key libbase "$k_cross" "${overlay[@]#"$here"/}" -- "$here"/stdlib/{zip.py,exclude} "${overlay[@]}")
k_stdlib=$(key stdlib "$k_libbase" "${runtime[@]#"$here"/}" -- "${runtime[@]}")

export PYGUEST=$here CACHE=$cache
export SOURCES=$cache/sources-$k_sources NATIVE=$cache/native-$k_native CROSS=$cache/cross-$k_cross
export LINK=$cache/link-$k_link LIBBASE=$cache/libbase-$k_libbase STDLIB=$cache/stdlib-$k_stdlib
export TARGET_CFLAGS="${target_cflags[*]}" GLUE=$glue NAMES=$names LTO=$lto

if [ -n "$print" ]; then
    case $print in
        cc) echo "$SOURCES/toolchain/bin/wasm-cc" ;;
        sysroot) echo "$SOURCES/sysroot" ;;
        cflags) echo "$TARGET_CFLAGS $(cat "$CROSS/cflags") -I$here/include" ;;
        ldflags) cat "$CROSS/ldflags" ;;
        native-python) echo "$NATIVE/bin/python3.13" ;;
        cpython-src) echo "$SOURCES/cpython" ;;
        cross) echo "$CROSS" ;;
        wasm) echo "$out/kaspr-python.wasm" ;;
        stdlib) echo "$out/stdlib.zip" ;;
        *) echo "build.sh: --print knows cc, sysroot, cflags, ldflags, native-python, cpython-src, cross, wasm and stdlib" >&2; exit 2 ;;
    esac
    exit 0
fi

say() { echo "pyguest: $*" >&2; }

# stage NAME DIR SCRIPT...: runs SCRIPT once to fill DIR; its output goes to DIR.log, whose end is shown when it fails.
# The time of .done is the time of the last use; beyond the six results used last, a stage's results are deleted.
stage() {
    local name=$1 dir=$2 start=$SECONDS old
    shift 2
    if [ -e "$dir/.done" ]; then
        touch "$dir/.done"
        return
    fi
    mkdir -p "$cache"
    (
        flock 9
        [ -e "$dir/.done" ] && exit
        say "$name: building"
        rm -rf "$dir"
        mkdir -p "$dir"
        if ! "$@" "$dir" >"$dir.log" 2>&1; then
            tail -n 40 "$dir.log" >&2
            say "$name: failed; all of its output is in $dir.log"
            exit 1
        fi
        touch "$dir/.done"
        say "$name: done in $((SECONDS - start)) s"
    ) 9>"$dir.lock"
    ls -1t "$cache/$name"-*/.done | tail -n +7 | while IFS= read -r old; do
        old=${old%/.done}
        rm -rf "$old" "$old.log" "$old.lock"
    done
}

stage sources "$SOURCES" "$here/cpython/fetch.sh"
stage native "$NATIVE" "$here/cpython/native.sh"
stage cross "$CROSS" "$here/cpython/cross.sh"
stage libbase "$LIBBASE" "$NATIVE/bin/python3.13" "$here/stdlib/zip.py" base
stage stdlib "$STDLIB" "$NATIVE/bin/python3.13" "$here/stdlib/zip.py" final
mkdir -p "$out"
if [ ${#glue_c[@]} -eq 0 ]; then
    cmp -s "$STDLIB/stdlib.zip" "$out/stdlib.zip" || cp "$STDLIB/stdlib.zip" "$out/"
    say "no C file in ${glue#"$here"/}: nothing to link"
    exit 0
fi
stage link "$LINK" "$here/cpython/link.sh"

# The build id is a hash of the results, not of the inputs: equal bytes on two machines have equal ids.
id=$(cat "$LINK/sha256" "$STDLIB/sha256" | sha256sum | cut -c1-32)
if [ "$(cat "$out/BUILD_ID" 2>/dev/null)" != "$id" ] || [ ! -f "$out/kaspr-python.wasm" ] || [ ! -f "$out/stdlib.zip" ]; then
    rm -f "$out/BUILD_ID"
    for f in "$LINK/kaspr-python.wasm" "$STDLIB/stdlib.zip"; do
        cp "$f" "$out/.new.$$"
        mv "$out/.new.$$" "$out/${f##*/}"
    done
    echo "$id" >"$out/BUILD_ID"
    say "$(stat -c %s "$out/kaspr-python.wasm") bytes of kaspr-python.wasm, $(stat -c %s "$out/stdlib.zip") of stdlib.zip, build $id"
fi
