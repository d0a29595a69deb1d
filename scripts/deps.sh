#!/usr/bin/env bash
# Installs the Debian packages the Makefile's targets need; does nothing, quickly, when all is there.
#
#   deps.sh GROUP...           install what is missing of the groups build, kafka, peers, flame, node, browser, image
#   deps.sh --check GROUP...   only say what is missing; exit 1 when something is
#
# A need is a command or a file, so a tool that came from elsewhere (a JDK of one's own, say) is as good as Debian's package.
# The guest's own toolchain is not here: pyguest/build.sh fetches it into the cache folder.
set -euo pipefail

# Lines of: group, command or absolute path, Debian package, what for.
needs='
build  git                                  git                       version stamps
build  gcc                                  gcc                       cgo
build  /usr/include/stdio.h                 libc6-dev                 cgo
build  g++                                  g++                       the C++ library that RocksDB links
build  /usr/include/rocksdb/c.h             librocksdb-dev            table stores; grocksdb is pinned to the release of Debian 12
build  make                                 make                      the targets
build  python3                              python3                   computes what examples must give
build  patch                                patch                     our changes to wazero and CPython
build  /etc/ssl/certs/ca-certificates.crt   ca-certificates           TLS
kafka  java                                 openjdk-17-jre-headless   the real Apache Kafka and schema registry of the integration suite
kafka  mvn                                  maven                     their programs
peers  javac                                openjdk-17-jdk-headless  compiles the Kafka Streams peer
peers  python3                              python3                   the Python peers
peers  /usr/share/doc/python3-venv            python3-venv              their packages
flame  perf                                 linux-perf                samples the engine for the flame graphs
node   node                                 nodejs                    builds and tests the page of the console
node   npm                                  npm                       its packages
browser /usr/bin/chromium                   chromium                  clicks through it
image  buildah                              buildah                   builds the image where no Docker engine answers
image  runc                                 runc                      starts it once
image  mmdebstrap                           mmdebstrap                the root file system it is built in
image  python3                              python3                   writes the configuration of that start
image  /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring signatures of its packages
'

check=
[ "${1:-}" = --check ] && { check=1; shift; }
[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }

missing=() wanted=" $* "
while read -r group need package why; do
    case $wanted in *" $group "*) ;; *) continue ;; esac
    case $need in
        /*) [ -e "$need" ] || { missing+=("$package"); echo "deps: $need is missing: $why" >&2; } ;;
        *) command -v "$need" >/dev/null || { missing+=("$package"); echo "deps: $need is missing: $why" >&2; } ;;
    esac
done < <(grep . <<<"$needs")

[ ${#missing[@]} -gt 0 ] || exit 0
[ -z "$check" ] || exit 1
command -v apt-get >/dev/null || {
    echo "deps: this is not Debian: install what is named above by hand (Debian calls it: ${missing[*]})" >&2
    exit 1
}

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "deps: neither root nor sudo; run as root: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 "$@" </dev/null >&2; }
echo "deps: installing ${missing[*]}" >&2
apt update
apt install --no-install-recommends "${missing[@]}"
