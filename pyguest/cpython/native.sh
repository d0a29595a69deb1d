#!/usr/bin/env bash
# native.sh DIR: builds and installs CPython for this machine in DIR. It compiles the standard library, drives the cross build
# and is what native tests of the glue run against. zlib is linked from our own source, so the result needs no -dev packages.
set -euo pipefail
dir=$1
. "$PYGUEST/cpython/pins"
jobs=$(nproc)

mkdir -p "$dir/work/zlib/include" "$dir/work/python"
cp "$SOURCES"/zlib/*.h "$dir/work/zlib/include/"
cd "$dir/work/zlib"
for f in adler32 compress crc32 deflate infback inffast inflate inftrees trees uncompr zutil; do
    "clang-$LLVM" -O2 -fPIC -c "$SOURCES/zlib/$f.c" -o "$f.o"
done
"llvm-ar-$LLVM" rcsD libz.a ./*.o

cd "$dir/work/python"
env CC="clang-$LLVM" OPT="-DNDEBUG -O3 -Wall" ZLIB_CFLAGS="-I$dir/work/zlib/include" ZLIB_LIBS="-L$dir/work/zlib -lz" \
    "$SOURCES/cpython/configure" --prefix="$dir" --disable-test-modules --without-ensurepip --with-pkg-config=no
make -j"$jobs"
make install
cd "$dir"
rm -rf work share
bin/python3.13 -c 'import gzip, json, decimal, hashlib; gzip.decompress(gzip.compress(b"x"))'
