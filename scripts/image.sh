#!/usr/bin/env bash
# image.sh build VERSION: builds the image kaspr:VERSION (Containerfile).
# image.sh test VERSION:  starts it once (read-only root, no rights, no network, not root) and compares its output.
#
# With a Docker engine both go through it. Without one: buildah builds and runc starts, both from Debian's packages; they need
# root. No registry is needed then: the stage that compiles is made of Debian's packages, by mmdebstrap, from the mirrors this
# machine already uses. IMAGE_BASE names a Debian image to use instead.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/local/go/bin

command=${1:?build or test} version=${2:?version}
name=kaspr:$version
example=examples/quickstart
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

engine=buildah
if command -v docker >/dev/null && docker info >/dev/null 2>&1; then engine=docker; fi
if [ "$engine" = buildah ]; then
    scripts/deps.sh image
    [ "$(id -u)" = 0 ] || { echo "image: without a Docker engine this needs root" >&2; exit 1; }
    # No overlay mounts and no user namespaces needed: works inside containers and virtual machines too.
    export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
fi

# base: makes an image of Debian with compiler and libraries, of this machine's own release and mirrors, and prints its name.
base() {
    local release packages key image container sources=() options
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    packages=g++,librocksdb-dev,ca-certificates,tzdata
    key=$(sha256sum <<<"$release $packages" | cut -c1-12)
    image=localhost/kaspr-build:$release-$key
    if ! buildah inspect --type image "$image" >/dev/null 2>&1; then
        echo "image: making $image from Debian's packages" >&2
        mapfile -t sources < <(find /etc/apt/sources.list.d -name '*.sources' 2>/dev/null; [ ! -s /etc/apt/sources.list ] || echo /etc/apt/sources.list)
        options=$work/apt.conf # how this machine fetches: proxies, checks
        apt-config dump | grep '^Acquire::' >"$options" || true
        mmdebstrap --quiet --variant=minbase --include="$packages" --aptopt="$options" "$release" "$work/base.tar" "${sources[@]}" >&2
        container=$(buildah from scratch)
        buildah add -q "$container" "$work/base.tar" / >/dev/null
        buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
        buildah commit -q "$container" "$image" >/dev/null
        buildah rm "$container" >/dev/null
    fi
    echo "$image"
}

build() {
    # What the Containerfile sees: the files git knows or would, and the built guest. Nothing else lies in the context.
    mkdir "$work/src"
    git ls-files -co --exclude-standard -z | while IFS= read -r -d '' f; do [ ! -f "$f" ] || printf '%s\0' "$f"; done |
        tar -c --null -T - | tar -x -C "$work/src"
    mkdir -p "$work/src/pyguest/build"
    cp pyguest/build/* "$work/src/pyguest/build/"
    go mod vendor -o "$work/modules"
    scripts/wazero.sh "$work/modules/github.com/tetratelabs/wazero"
    local args=(--file Containerfile --tag "$name" --build-arg VERSION="$version"
        --build-context go="$(go env GOROOT)" --build-context modules="$work/modules")
    if [ "$engine" = docker ]; then
        docker buildx build --load ${IMAGE_BASE:+--build-arg BASE="$IMAGE_BASE"} "${args[@]}" "$work/src"
    else
        buildah build --format docker --build-arg BASE="${IMAGE_BASE:-$(base)}" "${args[@]}" "$work/src"
        buildah images "$name"
    fi
}

# start ARG...: runs the image with the example mounted at /example. Its root is read-only, it has no capability and no
# network, and of the writable places only the two of the Containerfile.
start() {
    if [ "$engine" = docker ]; then
        docker run --rm --read-only --tmpfs /tmp --tmpfs /var/lib/kaspr:uid=65532 --network none --cap-drop ALL \
            --security-opt no-new-privileges --volume "$PWD/$example:/example:ro" "$name" "$@"
        return
    fi
    local bundle=$work/bundle container root status=0
    mkdir -p "$bundle"
    container=$(buildah from --pull-never "localhost/$name")
    root=$(buildah mount "$container")
    # User, environment and entry point are the image's own, as any runtime would take them.
    buildah inspect --type image "localhost/$name" >"$work/image.json"
    python3 - "$work/image.json" "$root" "$PWD/$example" "$@" >"$bundle/config.json" <<'P'
import json, sys

image, root, example, *args = sys.argv[1:]
config = json.load(open(image))["Docker"]["config"]
uid, gid = (int(n) for n in config["User"].split(":"))
safe = ["nosuid", "nodev", "noexec"]
json.dump({
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": uid, "gid": gid}, "cwd": config["WorkingDir"], "env": config["Env"],
        "args": config["Entrypoint"] + args, "capabilities": {}, "noNewPrivileges": True,
    },
    "root": {"path": root, "readonly": True},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": safe + ["mode=1777"]},
        {"destination": "/var/lib/kaspr", "type": "tmpfs", "source": "tmpfs", "options": safe + [f"uid={uid}", f"gid={gid}"]},
        {"destination": "/example", "type": "bind", "source": example, "options": ["rbind", "ro"]},
    ],
    "linux": {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
    },
}, sys.stdout)
P
    runc --root "$work/runc" run --bundle "$bundle" "kaspr-test-$$" </dev/null || status=$?
    buildah umount "$container" >/dev/null
    buildah rm "$container" >/dev/null
    return $status
}

test_image() {
    echo "image: version" >&2
    start version
    echo "image: its health check, which nobody answers here" >&2
    if start health 2>"$work/health.log"; then
        echo "image: the health check is content although nothing runs" >&2
        exit 1
    fi
    grep -q '/healthz' "$work/health.log" || { cat "$work/health.log" >&2; exit 1; }
    echo "image: the quick start" >&2
    start dev /example --input orders=/example/orders.jsonl --drain >"$work/out.jsonl"
    # Topics and partitions come in any order.
    if ! diff <(sort "$example/expected.jsonl") <(sort "$work/out.jsonl"); then
        echo "image: the output differs from $example/expected.jsonl" >&2
        exit 1
    fi
    echo "image: $(wc -l <"$work/out.jsonl") records, as expected"
}

case $command in
    build) build ;;
    test) test_image ;;
    *) echo "image: build or test, not $command" >&2; exit 2 ;;
esac
