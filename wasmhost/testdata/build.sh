#!/bin/sh
# Builds guest.wasm. The module is committed, so that the tests need no compiler.
set -eu
cd "$(dirname "$0")"
CLANG=${CLANG:-clang-19}
"$CLANG" --target=wasm32 -O1 -mbulk-memory -msign-ext -mnontrapping-fptoint -mmultivalue -nostdlib -fno-builtin-memset \
	-Wall -Wextra -Wno-infinite-recursion -Wno-unused-parameter \
	-Wl,--no-entry -Wl,--export=kaspr_state -Wl,--stack-first -Wl,-z,stack-size=262144 -Wl,--strip-debug \
	-o guest.wasm guest.c
