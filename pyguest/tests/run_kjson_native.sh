#!/usr/bin/env bash
# run_kjson_native.sh [--san] [--bench] [ARG...]: compiles glue/kjson.c for this machine's CPython and runs its tests, or its benchmark.
# PYTHON names the native 3.13 (default: the one of build.sh). --san: with address and undefined behaviour sanitizers.
# ARG... go to the Python script (test_kjson.py --help). Further modules for the benchmark come from PYTHONPATH.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
python=${PYTHON:-$("$root/build.sh" --print native-python)}
src=$("$root/build.sh" --print cpython-src)
cc=${CC:-clang-19}
script=test_kjson.py
flags=(-O3 -fno-strict-overflow -fwrapv -fPIC -shared -std=gnu11 -Wall -Wextra -Wno-missing-field-initializers -DNDEBUG)
env=()
while [ $# -gt 0 ]; do
    case $1 in
        --san)
            flags+=(-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -shared-libsan)
            env+=(PYTHONMALLOC=malloc "LD_PRELOAD=$("$cc" -print-file-name=libclang_rt.asan-x86_64.so)" ASAN_OPTIONS=detect_leaks=0)
            ;;
        --bench) script=bench_kjson.py ;;
        *) break ;;
    esac
    shift
done
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
key=$({ printf '%s\n' "$python" "$cc" "${flags[@]}"; cat "$root"/glue/{kjson,kbuf}.c "$root"/include/{kjson,kbuf}.h; } | sha256sum | cut -c1-16)
dir=${KASPR_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/kaspr}/pyguest/kjson-native-$key
if [ ! -f "$dir/_kjson.so" ]; then
    mkdir -p "$dir"
    "$cc" "${flags[@]}" -I"$root/include" -isystem "$include" -isystem "$include/internal" -isystem "$src/Include/internal/mimalloc" \
        "$root"/glue/{kjson,kbuf}.c -lm -o "$dir/_kjson.so.$$"
    mv "$dir/_kjson.so.$$" "$dir/_kjson.so"
fi
exec env "${env[@]}" PYTHONPATH="$dir${PYTHONPATH:+:$PYTHONPATH}" "$python" "$here/$script" "$@"
