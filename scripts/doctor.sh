#!/usr/bin/env bash
# Says what this machine has and lacks for each part of the work. Changes nothing; exit 1 when `make test` would fail.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/local/go/bin

row() { printf '  %-14s %s\n' "$1" "$2"; }
first() { "$@" 2>&1 | head -n 1; }
bad=0

want=$(awk '$1 == "go" { print $2 }' go.mod)
if have=$(go env GOVERSION 2>/dev/null); then
    have=${have#go}
    if [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ]; then row go "$have"; else
        row go "$have: needs $want or newer"; bad=1
    fi
else
    row go "missing: install Go $want or newer"; bad=1
fi
row system "$( (. /etc/os-release && echo "$PRETTY_NAME") 2>/dev/null), $(nproc) cores, $(awk '/MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)"
command -v gcc >/dev/null && row gcc "$(first gcc --version)"
command -v java >/dev/null && row java "$(first java -version)"
command -v mvn >/dev/null && row maven "$(first mvn -B --version)"
command -v docker >/dev/null && { docker info >/dev/null 2>&1 && row docker "engine answers" || row docker "client only, no engine answers: images are built with buildah"; }

for group in build kafka image; do
    if lacks=$(scripts/deps.sh --check "$group" 2>&1); then row "$group" "complete"; else
        row "$group" "make deps installs what is missing:"
        sed 's/^deps: /                   /' <<<"$lacks"
        [ "$group" = image ] || command -v apt-get >/dev/null || bad=1
    fi
done

cache=${KASPR_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/kaspr}
row cache "$cache, $(du -sh "$cache" 2>/dev/null | cut -f1 | grep . || echo nothing) used, $(df -h --output=avail "$(d=$cache; while [ ! -d "$d" ]; do d=$(dirname "$d"); done; echo "$d")" | tail -n 1 | tr -d ' ') free"
row guest "$([ -f pyguest/build/BUILD_ID ] && echo "build $(cat pyguest/build/BUILD_ID)" || echo "not built: make pyguest")"
exit "$bad"
