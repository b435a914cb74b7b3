#!/bin/sh
# Step of the images: tini, the init that hands signals on and reaps what decoders leave behind.
#
#   deploy/image/tini.sh FILE
#
# From the package that collect.sh has brought, without a network; else from Debian.
set -eu

file=${1:?usage: tini.sh FILE}
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
package=$(find "$root/deploy/air-gapped/brought" -name "tini_*_$(dpkg --print-architecture).deb" -print -quit)
if [ -z "$package" ]; then
    apt-get update -qq
    (cd "$scratch" && apt-get download -qq tini)
    package=$(find "$scratch" -name 'tini_*.deb' -print -quit)
fi
dpkg-deb --extract "$package" "$scratch/tree"
install -D -m 0755 "$scratch/tree/usr/bin/tini" "$file"
