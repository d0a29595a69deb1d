#!/usr/bin/env bash
# fuzz.sh TIME: every Fuzz function of the module, one after another. Go writes an input that fails to the package's
# testdata/fuzz (shortened for a second only: the rest of the time is for finding more); keep it there, named after the issue it belongs to.
set -euo pipefail
time=${1:-60s}
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n 1 dirname | sort -u | while read -r package; do
    go test -list '^Fuzz' "$package" </dev/null | grep '^Fuzz' | while read -r name; do
        echo "== $package $name, $time"
        go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 1s "$package" </dev/null
    done
done
