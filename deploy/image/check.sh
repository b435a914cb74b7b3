#!/bin/sh
# Last step of the images, as the user that they run as: what was built starts, and its weights are those it should have.
#
#   deploy/image/check.sh controlplane|cpu|cuda
set -eu

kind=${1:?usage: check.sh controlplane|cpu|cuda}
[ "$(id -u)" = 10001 ] || {
    echo "check.sh: run as 10001, not as $(id -u)" >&2
    exit 1
}
for folder in /opt/speakerd /opt/speakerd-code; do
    [ ! -w "$folder" ] || {
        echo "check.sh: $folder can be written by the user that runs" >&2
        exit 1
    }
done
speakerd --version
speakerd controlplane --help > /dev/null
case "$kind" in
    controlplane)
        python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is not None)' || {
            echo "check.sh: torch is in the control plane's image" >&2
            exit 1
        }
        ;;
    *) speakerd models verify ;;
esac
