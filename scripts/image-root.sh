#!/bin/sh
# image-root.sh BINARY OUT: fills OUT with a root file system that holds BINARY, the shared libraries it loads, the
# certificates of the authorities, time zones, and one user; with the copyright and the package status of what it copied, so
# that scanners and readers know where it comes from. Runs inside the build stage, on Debian.
set -eu
binary=$1 out=$2
user=65532

mkdir -p "$out/usr/bin" "$out/usr/lib" "$out/etc/ssl/certs" "$out/etc/kaspr/definitions" "$out/var/lib/kaspr" \
         "$out/var/lib/dpkg/status.d" "$out/tmp" "$out/usr/share"
ln -s usr/lib "$out/lib"
ln -s usr/lib "$out/lib64"
chmod 1777 "$out/tmp"
chown "$user:$user" "$out/var/lib/kaspr"

cp "$binary" "$out/usr/bin/kaspr"
printf 'kaspr:x:%s:%s:kaspr:/var/lib/kaspr:/usr/sbin/nologin\n' "$user" "$user" >"$out/etc/passwd"
printf 'kaspr:x:%s:\n' "$user" >"$out/etc/group"
printf 'hosts: files dns\n' >"$out/etc/nsswitch.conf"
cp /etc/os-release "$out/etc/os-release"
cp /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/"
cp -a /usr/share/zoneinfo "$out/usr/share/"

# The dynamic loader and the libraries, under their own paths below /usr/lib.
packages=
for library in $(ldd "$binary" | grep -o '/[^ ]*') /lib/*/libnss_dns.so.2 /lib/*/libnss_files.so.2 /lib/*/libresolv.so.2; do
    [ -e "$library" ] || continue
    real=$(readlink -f "$library")
    to=$out/usr${library#/usr}
    case $library in /lib64/*) to=$out/usr/lib/${library#/lib64/} ;; esac
    mkdir -p "${to%/*}"
    cp -L "$library" "$to"
    packages="$packages $(dpkg -S "$real" "/usr$library" "$library" 2>/dev/null | head -n 1 | cut -d: -f1)"
done

for package in $(printf '%s\n' $packages ca-certificates tzdata | sort -u); do
    dpkg -s "$package" >"$out/var/lib/dpkg/status.d/$package"
    mkdir -p "$out/usr/share/doc/$package"
    cp -L "/usr/share/doc/$package/copyright" "$out/usr/share/doc/$package/"
done
mkdir -p "$out/usr/share/doc/kaspr"
cp /src/LICENSE /src/NOTICE /src/THIRD_PARTY_LICENSES "$out/usr/share/doc/kaspr/"
