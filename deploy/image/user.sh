#!/bin/sh
# Step of the images: the user that everything runs as, 10001, and the folders that are his to write into.
set -eu

groupadd --gid 10001 speakerd
useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin speakerd
install -d -o 10001 -g 10001 -m 0700 /data
install -d -o 10001 -g 10001 -m 0755 /models
