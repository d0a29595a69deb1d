#!/usr/bin/env bash
# tool.sh PACKAGE@VERSION ARG...: runs a Go program, built once per version of it and of Go into the cache folder.
# Not in go.mod: the linters' hundreds of dependencies would be the project's.
set -euo pipefail
package=$1
shift
cache=${KASPR_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/kaspr}
bin=$cache/tools/$(go env GOVERSION)/${package##*@}
name=${package%@*}
name=${name##*/}
[ -x "$bin/$name" ] || GOBIN=$bin GOFLAGS= go install "$package"
exec "$bin/$name" "$@"
