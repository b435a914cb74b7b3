#!/bin/sh
# Step of the images: the bundles of weights that collect.sh has brought, if any, as the image's model folder.
#
#   deploy/image/models.sh FOLDER
#
# Each is a folder with a bundle.toml, which pins the digests of its weights; `speakerd models verify` compares them.
set -eu

folder=${1:?usage: models.sh FOLDER}
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$folder"
for bundle in "$root"/deploy/air-gapped/brought/models/*/; do
    [ -f "${bundle}bundle.toml" ] || continue
    cp -R "${bundle%/}" "$folder/"
done
chmod -R u=rwX,go=rX "$folder"
