#!/usr/bin/env bash
# wazero.sh: makes bin/wazero, the release of wazero that go.mod pins with the patches of wasmhost/wazero, and bin/wazero.mod, a go.mod that takes it.
# The targets of the Makefile build and test with it (GOFLAGS=-modfile=…); the bare go command takes the release as it is.
# wazero.sh DIR: only patches the copy of wazero in DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOFLAGS='' PATH=$PATH:/usr/local/go/bin
module=github.com/tetratelabs/wazero

patches() {
    local p
    for p in wasmhost/wazero/*.patch; do patch -s -d "$1" -p1 --no-backup-if-mismatch -F0 <"$p"; done
}
if [ $# -gt 0 ]; then
    patches "$1"
    exit
fi

key=$({ go list -m "$module"; cat wasmhost/wazero/*.patch scripts/wazero.sh; } | sha256sum | cut -c1-16)
mkdir -p bin
if [ "$(cat bin/wazero/.key 2>/dev/null)" != "$key" ]; then
    go mod download "$module"
    rm -rf bin/wazero bin/wazero.new
    cp -r "$(go list -m -f '{{.Dir}}' "$module")" bin/wazero.new
    chmod -R u+w bin/wazero.new
    patches bin/wazero.new
    echo "$key" >bin/wazero.new/.key
    mv bin/wazero.new bin/wazero
fi
cp go.mod bin/wazero.mod.new
cp go.sum bin/wazero.sum
go mod edit -replace "$module=./bin/wazero" bin/wazero.mod.new
mv bin/wazero.mod.new bin/wazero.mod
