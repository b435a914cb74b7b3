#!/bin/sh
# Fetch prometheus and promtool, which tests of metrics, alerts and boards run.
#
#   scripts/fetch_prometheus.sh FOLDER
#
# FOLDER  gets bin/prometheus and bin/promtool, from Debian's package: unpacked, not installed, so that no service
#         starts and no rights are needed. Without apt, or when it has no such package, nothing is fetched and the
#         tests that need them are skipped; what stands on PATH serves as well.
set -eu

folder=${1:?usage: fetch_prometheus.sh FOLDER}
case $folder in /*) ;; *) folder=$PWD/$folder ;; esac # apt is run elsewhere
if [ -x "$folder/bin/prometheus" ] && [ -x "$folder/bin/promtool" ]; then
    exit 0
fi
if ! command -v apt-get > /dev/null || ! command -v dpkg-deb > /dev/null; then
    echo "prometheus was not fetched: there is no apt here"
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
if ! { apt-get download -qq prometheus || { apt-get $own -qq update && apt-get $own download -qq prometheus; }; } \
    > "$work/log" 2>&1; then
    echo "prometheus was not fetched: $(tail -n 1 "$work/log")"
    exit 0
fi
dpkg-deb -x prometheus_*.deb "$work/unpacked"
mkdir -p "$folder/bin"
mv "$work/unpacked/usr/bin/prometheus" "$work/unpacked/usr/bin/promtool" "$folder/bin/"
