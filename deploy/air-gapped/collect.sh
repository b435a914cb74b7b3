#!/bin/sh
# Gather what the images need, on a machine with a network, for building and running them where there is none.
#
#   deploy/air-gapped/collect.sh [--extras all|controlplane,embedded] [--bundle NAME=FOLDER]... [--images]
#
# Run it on Debian 12 with Python 3.11, whose wheels are the images', or in the images' own base:
#   docker run --rm -v "$PWD:/src" -w /src python:3.11-slim-bookworm deploy/air-gapped/collect.sh
#
# --extras  what to gather wheels for; controlplane,embedded has no PyTorch (default: all, about 3 GB)
# --bundle  an imported bundle of weights (its folder holds bundle.toml), for images to carry
# --images  the base image, and those that compose and charts run beside ours, as archives for `docker load` (needs docker)
#
# TORCH_INDEX in the environment names an index that is asked for PyTorch's wheels besides. Its publisher keeps CPU wheels
# in one: where no device is, nothing is brought then, and is in the CPU image, that only devices use.
#
# Everything lies in deploy/air-gapped/brought afterwards, with SHA256SUMS over all of it. Carry the checkout over with it,
# and there:
#   (cd deploy/air-gapped/brought && sha256sum --check --quiet SHA256SUMS)
#   for archive in deploy/air-gapped/brought/images/*.tar; do docker load --input "$archive"; done
#   docker build --network=none -f Dockerfile.cuda -t speakerd:cuda .
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
brought="$root/deploy/air-gapped/brought"
python=${PYTHON:-python3}
extras=all
images=no
mkdir -p "$brought/wheels" "$brought/debs" "$brought/models"
while [ $# -gt 0 ]; do
    case "$1" in
        --extras)
            extras=${2:?--extras EXTRAS}
            shift
            ;;
        --bundle)
            name=${2%%=*}
            folder=${2#*=}
            [ -f "$folder/bundle.toml" ] || {
                echo "collect.sh: $folder holds no bundle.toml: speakerd models import makes one" >&2
                exit 2
            }
            rm -rf "$brought/models/$name"
            cp -R "$folder" "$brought/models/$name"
            shift
            ;;
        --images) images=yes ;;
        *)
            echo "collect.sh: what is $1? See the first lines of this file" >&2
            exit 2
            ;;
    esac
    shift
done

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "collect.sh: the images run Python 3.11, and wheels are made for one version: PYTHON=python3.11 $0" >&2
    exit 1
}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
"$python" "$root/deploy/image/requirements.py" "$root/pyproject.toml" "$extras" > "$scratch/requirements"
# What speakerd's own wheel is built with comes along: it is built where the images are.
"$python" -c 'import sys, tomllib; print(*tomllib.load(open(sys.argv[1], "rb"))["build-system"]["requires"], sep="\n")' \
    "$root/pyproject.toml" >> "$scratch/requirements"
wheel() {
    [ -z "${TORCH_INDEX:-}" ] || set -- "$@" --extra-index-url "$TORCH_INDEX"
    "$scratch/venv/bin/python" -m pip wheel --disable-pip-version-check --quiet --constraint "$root/constraints.txt" \
        --wheel-dir "$brought/wheels" "$@"
}
wheel --requirement "$scratch/requirements"
# redis asks for it below Python 3.11.3: Debian's own is 3.11.2.
wheel --no-deps async-timeout==5.0.1
case ",$extras," in
    *,all,* | *,node,*) wheel --no-deps Resemblyzer==0.1.4 ;;
esac

if command -v apt-get > /dev/null; then
    [ -n "$(find /var/lib/apt/lists -name '*Packages*' -print -quit)" ] || apt-get update -qq
    (cd "$brought/debs" && apt-get download -qq tini)
else
    echo "collect.sh: not on Debian: put bookworm's tini_*.deb into $brought/debs" >&2
fi

if [ "$images" = yes ]; then
    mkdir -p "$brought/images"
    sed -n 's/^ARG PYTHON_IMAGE=//p' "$root/Dockerfile" > "$scratch/images"
    sed -n 's/^ *image: \([^$]*\)$/\1/p' "$root/deploy/compose.yaml" | grep -v '^speakerd' >> "$scratch/images"
    sort -u "$scratch/images" | while read -r image; do
        docker pull --quiet "$image"
        docker save --output "$brought/images/$(echo "${image%%@*}" | tr '/:' '--').tar" "$image"
    done
fi

(cd "$brought" && rm -f SHA256SUMS && find . -type f ! -name SHA256SUMS ! -name README.md -print0 | sort -z |
    xargs -0 sha256sum > "$scratch/sums" && mv "$scratch/sums" SHA256SUMS)
du -sh "$brought"/*
