#!/usr/bin/env bash
# link.sh DIR: compiles the glue and links DIR/kaspr-python.wasm. Objects are kept in CACHE/glue-objects by the hash of what
# they are made of, so one changed file is one compilation.
set -euo pipefail
dir=$1
. "$PYGUEST/cpython/pins"
cc=$SOURCES/toolchain/bin/wasm-cc
objects=$CACHE/glue-objects
mkdir -p "$objects"
# -std=gnu11: the glue uses attributes. Warnings are lint's business (make lint), errors are ours.
read -ra cflags <<<"$TARGET_CFLAGS $(cat "$CROSS/cflags") -std=gnu11 -Wall -Wextra -I$PYGUEST/include -ffile-prefix-map=$PYGUEST=pyguest -ffile-prefix-map=$GLUE=glue"
read -ra ldflags <<<"$(cat "$CROSS/ldflags")"

shopt -s nullglob
headers=("$GLUE"/*.h "$PYGUEST"/include/*.h)
base=$(printf '%s\n' "$CROSS" "${cflags[@]}" | cat - "${headers[@]}" | sha256sum | cut -c1-16)
list=() pids=()
for c in "$GLUE"/*.c; do
    o=$objects/$(basename "$c" .c)-$( { echo "$base"; cat "$c"; } | sha256sum | cut -c1-16).o
    list+=("$o")
    if [ -f "$o" ]; then touch "$o"; continue; fi
    { "$cc" "${cflags[@]}" -c "$c" -o "$o.$$" && mv "$o.$$" "$o"; } &
    pids+=($!)
    if [ $((${#pids[@]} % $(nproc))) -eq 0 ]; then wait "$!"; fi
done
for pid in "${pids[@]}"; do wait "$pid"; done
find "$objects" -name '*.o' -mtime +7 -delete

# glue/exports names data symbols the host must find (export_name serves functions only).
exports=()
if [ -f "$GLUE/exports" ]; then
    while read -r symbol _; do
        case $symbol in ''|\#*) ;; *) exports+=("-Wl,--export=$symbol") ;; esac
    done <"$GLUE/exports"
fi
strip=-Wl,--strip-all
[ "$NAMES" = 0 ] || strip=-Wl,--strip-debug
"$cc" "$strip" "${list[@]}" "${ldflags[@]}" "${exports[@]}" -o "$dir/kaspr-python.wasm"

for secret in "$CACHE" "$PYGUEST" "${HOME:-/nonexistent}/"; do
    if grep -qaF -- "$secret" "$dir/kaspr-python.wasm"; then echo "link: the wasm contains the path $secret" >&2; exit 1; fi
done
sha256sum <"$dir/kaspr-python.wasm" >"$dir/sha256"
