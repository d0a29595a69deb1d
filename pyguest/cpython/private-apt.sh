#!/usr/bin/env bash
# private-apt.sh SUITE DIR: makes DIR a private apt directory that reads the packages and sources of SUITE.
#
# The archive is whatever this machine already uses: every entry of its own apt configuration that serves the release it
# runs (both the deb822 and the one-line format) is copied with the suite replaced. So no host name stands in the project,
# mirrors and signing keys stay the operator's, and the system's own package lists are never touched.
# Afterwards: APT_CONFIG=DIR/apt.conf apt-get download …
set -euo pipefail
export LC_ALL=C

suite=$1 dir=$2
mkdir -p "$dir"/{lists/partial,cache/archives/partial,sources.list.d,preferences.d}

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[ -n "$codename" ] || { echo "private-apt: /etc/os-release names no VERSION_CODENAME" >&2; exit 1; }

{
    # deb822: one stanza per paragraph; continuation lines start with a blank.
    find /etc/apt/sources.list.d -maxdepth 1 -name '*.sources' -print0 2>/dev/null | sort -z | while IFS= read -r -d '' f; do
        printf '\n'
        cat "$f"
        printf '\n\n'
    done | awk -v own="$codename" -v suite="$suite" '
        function flush(   i, n, w, hit) {
            n = split(field["suites"], w, /[ \t]+/)
            for (i = 1; i <= n; i++) if (w[i] == own) hit = 1
            if (hit && (" " field["components"] " ") ~ / main / && tolower(field["enabled"]) != "no" && field["uris"] != "") {
                print "Types: deb deb-src"
                print "URIs: " field["uris"]
                print "Suites: " suite
                print "Components: main"
                if (field["signed-by"] != "") print "Signed-By: " field["signed-by"]
                if (field["trusted"] != "") print "Trusted: " field["trusted"]
                print ""
            }
            split("", field); name = ""
        }
        /^#/ { next }
        /^[ \t]*$/ { flush(); next }
        /^[ \t]/ { line = $0; sub(/^[ \t]+/, "", line); field[name] = field[name] (name == "signed-by" ? "\n " : " ") line; next }
        { i = index($0, ":"); name = tolower(substr($0, 1, i - 1)); v = substr($0, i + 1); gsub(/^[ \t]+|[ \t]+$/, "", v); field[name] = v }
        END { flush() }
    '
} >"$dir/sources.list.d/suite.sources"

# One-line format: deb [options] URI SUITE COMPONENT...
{
    [ -f /etc/apt/sources.list ] && cat /etc/apt/sources.list && echo
    find /etc/apt/sources.list.d -maxdepth 1 -name '*.list' -print0 2>/dev/null | sort -z | while IFS= read -r -d '' f; do cat "$f"; echo; done
} | awk -v own="$codename" -v suite="$suite" '
    $1 != "deb" { next }
    {
        sub(/#.*/, ""); rest = $0; sub(/^[ \t]*deb[ \t]+/, "", rest); options = ""
        if (rest ~ /^\[/) { i = index(rest, "]"); options = substr(rest, 1, i) " "; rest = substr(rest, i + 1); sub(/^[ \t]+/, "", rest) }
        n = split(rest, w, /[ \t]+/); hit = 0
        for (i = 3; i <= n; i++) if (w[i] == "main") hit = 1
        if (w[2] != own || !hit || seen[w[1]]++) next
        print "deb " options w[1] " " suite " main"
        print "deb-src " options w[1] " " suite " main"
    }
' >"$dir/sources.list"

if [ ! -s "$dir/sources.list" ] && [ ! -s "$dir/sources.list.d/suite.sources" ]; then
    echo "private-apt: no entry of this machine's apt configuration serves $codename main; cannot derive $suite" >&2
    exit 1
fi

cat >"$dir/apt.conf" <<CONF
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "$dir/sources.list.d";
Dir::Etc::preferencesparts "$dir/preferences.d";
Dir::Etc::preferences "/dev/null";
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
APT::Sandbox::User "root";
APT::Get::AllowUnauthenticated "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
CONF

APT_CONFIG="$dir/apt.conf" apt-get -q update >&2
