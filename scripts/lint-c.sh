#!/usr/bin/env bash
# The guest's C code under -Wall -Wextra -Werror, with the compiler and the flags it is built with.
# wasmhost/testdata/build.sh does so for its own guest; cgo blocks are compiled with the package.
set -euo pipefail
cd "$(dirname "$0")/.."

cc=$(pyguest/build.sh --print cc)
read -ra flags < <(pyguest/build.sh --print cflags)
warn=(-std=gnu11 -Wall -Wextra -Werror -Wno-missing-field-initializers -fsyntax-only) # a PyTypeObject names what it needs
for file in pyguest/glue/*.c; do
    "$cc" "${flags[@]}" "${warn[@]}" "$file"
done
echo "lint: no warning in the guest's C code"
