#!/usr/bin/env bash
# Runs examples/quickstart on the embedded broker and shows what comes out. `make quickstart` has built bin/kaspr before.
set -euo pipefail
cd "$(dirname "$0")/.."
example=examples/quickstart

say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] || say() { printf '\n%s\n' "$*" >&2; }

say "The manifests are in order:"
bin/kaspr validate "$example"

say "$(wc -l <"$example/orders.jsonl") orders go in, the lines of the paid ones come out, to four topics:"
echo "\$ bin/kaspr dev $example --input orders=$example/orders.jsonl --drain" >&2
bin/kaspr dev "$example" --input "orders=$example/orders.jsonl" --drain --log-level warn

say "Next:"
cat >&2 <<'E2'
  bin/kaspr dev examples/quickstart          keeps running: edit examples/quickstart/shop.yaml and see it reload
  bin/kaspr --help                           the other commands
  make test                                  every test, real Kafka included
E2
