#!/usr/bin/env bash
# The C code under -Wall -Wextra -Werror: the guest's with its own compiler and flags, the engine's (cgo) with gcc.
set -euo pipefail
cd "$(dirname "$0")/.."
warn=(-Wall -Wextra -Werror -fsyntax-only)

cc=$(pyguest/build.sh --print cc)
read -ra flags < <(pyguest/build.sh --print cflags)
for file in pyguest/glue/*.c; do
    "$cc" "${flags[@]}" "${warn[@]}" "$file"
done
git ls-files -co --exclude-standard '*.c' ':!pyguest' | while read -r file; do
    gcc -O2 "${warn[@]}" "$file"
done
echo "lint: no warning in the C code"
