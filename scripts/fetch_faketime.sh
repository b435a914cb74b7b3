#!/bin/sh
# Fetch libfaketime, under which tests start daemons whose wall clock jumps.
#
#   scripts/fetch_faketime.sh FOLDER
#
# FOLDER  gets libfaketime.so.1, from Debian's package: unpacked, not installed, so that no rights are needed. Without
#         apt, or when it has no such package, nothing is fetched and the tests that need it are skipped.
set -eu

folder=${1:?usage: fetch_faketime.sh FOLDER}
case $folder in /*) ;; *) folder=$PWD/$folder ;; esac # apt is run elsewhere
if [ -f "$folder/libfaketime.so.1" ]; then
    exit 0
fi
if ! command -v apt-get > /dev/null || ! command -v dpkg-deb > /dev/null; then
    echo "libfaketime was not fetched: there is no apt here"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt reads and writes it as a user of its own when it is run by root.
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
own="-o Dir::State::lists=$work/state/lists -o Dir::Cache=$work/cache -o APT::Sandbox::User=$(id -un)"
cd "$work"
# The machine's own lists may be absent or old; those read here are thrown away again.
# shellcheck disable=SC2086
if ! { apt-get download -qq libfaketime || { apt-get $own -qq update && apt-get $own download -qq libfaketime; }; } \
    > "$work/log" 2>&1; then
    echo "libfaketime was not fetched: $(tail -n 1 "$work/log")"
    exit 0
fi
dpkg-deb -x libfaketime_*.deb "$work/unpacked"
mkdir -p "$folder"
find "$work/unpacked" -name libfaketime.so.1 -exec cp {} "$folder/" \;
