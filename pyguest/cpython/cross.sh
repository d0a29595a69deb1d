#!/usr/bin/env bash
# cross.sh DIR: builds the target's static libraries in DIR.
#   DIR/lib/*.a        libpython3.13, zlib, expat, libmpdec and the HACL hashes
#   DIR/include        pyconfig.h            DIR/sysconfig  _sysconfigdata, without paths of this machine
#   DIR/cflags         include path for code that is compiled against them       DIR/ldflags  what links them
set -euo pipefail
dir=$1
. "$PYGUEST/cpython/pins"
bin=$SOURCES/toolchain/bin
jobs=$(nproc)
read -ra flags <<<"$TARGET_CFLAGS"

mkdir -p "$dir"/{lib,include,sysconfig} "$dir/work/zlib/include"
cp "$SOURCES"/zlib/*.h "$dir/work/zlib/include/"
cd "$dir/work/zlib"
for f in adler32 compress crc32 deflate infback inffast inflate inftrees trees uncompr zutil; do
    "$bin/wasm-cc" "${flags[@]}" -ffile-prefix-map="$SOURCES/zlib=zlib" -c "$SOURCES/zlib/$f.c" -o "$f.o"
done
"$bin/wasm-ar" rcsD "$dir/lib/libz.a" ./*.o

# A relative path to the sources: configure writes it into the library.
ln -s "$SOURCES/cpython" "$dir/work/cpython"
mkdir "$dir/work/python"
cd "$dir/work/python"

# Why some answers are given beforehand:
# - with-pkg-config=no: pkg-config would find the host's libraries.
# - clock_nanosleep: wazero's poll has no absolute clocks; nanosleep is relative.
# - _lsprof: profiles are taken on the host. The rest of what is off here cannot work in the sandbox.
build=$(../cpython/config.guess)
env CC="$bin/wasm-cc" CXX="$bin/wasm-cc" AR="$bin/wasm-ar" RANLIB="$bin/wasm-ranlib" \
    CONFIG_SITE=../cpython/Tools/wasm/config.site-wasm32-wasi \
    ac_cv_func_clock_nanosleep=no ac_cv_lib_rt_clock_nanosleep=no py_cv_module__lsprof=n/a \
    OPT="-DNDEBUG -Wall" CFLAGS="$TARGET_CFLAGS -ffile-prefix-map=$dir/work=." \
    ZLIB_CFLAGS="-I$dir/work/zlib/include" ZLIB_LIBS="-L$dir/lib -lz" \
    ../cpython/configure --host=wasm32-wasip1 --build="$build" \
    --with-build-python="$NATIVE/bin/python3.13" --prefix=/usr --with-tzpath= \
    --with-pymalloc --disable-test-modules --disable-ipv6 --without-ensurepip --with-pkg-config=no
grep -q '^#define HAVE_CLOCK_NANOSLEEP' pyconfig.h && { echo "cross: clock_nanosleep is on" >&2; exit 1; }
make -j"$jobs" libpython3.13.a Modules/_hacl/libHacl_Hash_SHA2.a Modules/_decimal/libmpdec/libmpdec.a Modules/expat/libexpat.a pybuilddir.txt

cp libpython3.13.a Modules/_hacl/libHacl_Hash_SHA2.a Modules/_decimal/libmpdec/libmpdec.a Modules/expat/libexpat.a "$dir/lib/"
cp pyconfig.h "$dir/include/"
sysconfig=$(echo "$(cat pybuilddir.txt)"/_sysconfigdata_*.py)
sed -E -e "s#$CACHE/([a-z]+)-[0-9a-f]+#/build/\1#g" -e "s#$PYGUEST#/pyguest#g" -e "s#$build#build#g" "$sysconfig" >"$dir/sysconfig/${sysconfig##*/}"

src=$SOURCES/cpython/Include
echo "-DPy_BUILD_CORE_MODULE=1 -isystem $dir/include -isystem $src -isystem $src/internal -isystem $src/internal/mimalloc" >"$dir/cflags"
echo "$dir/lib/libpython3.13.a $dir/lib/libHacl_Hash_SHA2.a $dir/lib/libmpdec.a $dir/lib/libexpat.a $dir/lib/libz.a" \
    "-mexec-model=reactor -lwasi-emulated-signal -lwasi-emulated-getpid -lwasi-emulated-process-clocks -ldl -lm" \
    "-Wl,-z,stack-size=8388608 -Wl,--stack-first -Wl,--initial-memory=20971520 -Wl,--lto-O3" >"$dir/ldflags"
rm -rf "$dir/work"
