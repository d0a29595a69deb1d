#!/usr/bin/env bash
# Writes THIRD_PARTY_LICENSES: the terms of everything linked into the binary, Go modules and guest alike. `make licenses`.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
sources=$(dirname "$(pyguest/build.sh --print cpython-src)")
. pyguest/cpython/pins
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# add NAME FILE...: NAME's terms. Equal texts are printed once, under all their names.
add() {
    local name=$1 key
    shift
    cat "$@" | tr -d '\r\f' | sed 's/[[:space:]]*$//' >"$work/text"
    key=$(sha256sum <"$work/text" | cut -c1-16)
    cp "$work/text" "$work/$key.text"
    printf '%s\n' "$name" >>"$work/$key.names"
}

add "Go standard library and runtime, $(go env GOVERSION)" "$(go env GOROOT)/LICENSE"
go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' . | sort -u |
    while read -r path version dir; do
        # A module of a larger repository may leave its licence to the root module.
        files=$(find "$dir" -maxdepth 1 -iname 'LICEN[CS]E*' -o -maxdepth 1 -iname 'COPYING*' -o -maxdepth 1 -iname 'NOTICE*' | sort)
        [ -n "$files" ] || { echo "licenses: $path has no licence file" >&2; exit 1; }
        mapfile -t files <<<"$files"
        add "$path $version" "${files[@]}"
    done
add "CPython $CPYTHON_VERSION (the guest's interpreter and standard library)" "$sources/cpython/LICENSE"
add "Software incorporated in CPython $CPYTHON_VERSION (HACL*, Expat, libmpdec and others)" "$sources/cpython/Doc/license.rst"
add "zlib (in the guest)" "$sources/zlib/LICENSE"
add "wasi-libc $WASI_LIBC_VERSION and compiler-rt (in the guest)" "$sources/sysroot/share/doc/wasi-libc/copyright"
add "Preact $(sed -n 's/.*"preact": "\(.*\)".*/\1/p' http/console/package.json) (in the console's page)" http/console/LICENSE.preact
add "tzdata $TZDATA_VERSION (in the guest)" "$sources"/tzdata/*.dist-info/licenses/LICENSE

{
    echo "Third-party software in the kaspr binary, and its terms. Written by scripts/licenses.sh; do not edit."
    for names in $(grep -H -m 1 . "$work"/*.names | sort -t: -k 2 | cut -d: -f1); do
        printf '\n%s\n' "================================================================================"
        cat "$names"
        printf '%s\n\n' "--------------------------------------------------------------------------------"
        cat "${names%.names}.text"
    done
} >THIRD_PARTY_LICENSES
echo "licenses: $(cat "$work"/*.names | wc -l) components, $(wc -l <THIRD_PARTY_LICENSES) lines" >&2
