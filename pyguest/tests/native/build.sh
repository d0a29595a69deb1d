#!/usr/bin/env bash
# build.sh OUT: builds the native test guest. Uses the native CPython of pyguest/build.sh. CFLAGS_EXTRA: such as -fsanitize=address.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
out=$1
python=$("$here/build.sh" --print native-python)
prefix=$(cd "$(dirname "$python")/.." && pwd)
mkdir -p "$out"
objects=()
for c in "$here"/glue/*.c "$here"/tests/native/main.c; do
    o=$out/$(basename "$c" .c).o
    objects+=("$o")
    ${CC:-cc} -std=gnu11 -O2 -g -Wall -Wextra -Wno-unused-parameter -Wno-cast-function-type -Werror -DPy_BUILD_CORE_MODULE -fno-strict-overflow ${CFLAGS_EXTRA:-} \
        -I"$here/include" -I"$prefix/include/python3.13" -I"$prefix/include/python3.13/internal" -c "$c" -o "$o" &
done
for job in $(jobs -p); do wait "$job"; done
${CC:-cc} ${CFLAGS_EXTRA:-} -Wl,-export-dynamic "${objects[@]}" "$prefix"/lib/libpython3.13.a -ldl -lm -lpthread -lutil -o "$out/guest"
