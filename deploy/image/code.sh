#!/bin/sh
# Step of the images: speakerd itself, built as a wheel and unpacked into a folder of its own, compiled.
#
#   deploy/image/code.sh ENVIRONMENT CODE
#
# Where ENVIRONMENT is not there yet, an empty one is made in its place: our commands name its Python, and a change of our
# code needs no libraries. What is there afterwards belongs to root, and nothing that runs later writes into it.
set -eu

environment=${1:?usage: code.sh ENVIRONMENT CODE}
code=${2:?usage: code.sh ENVIRONMENT CODE}
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/deploy/image/sources.sh"

[ -x "$environment/bin/python" ] || python3 -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --no-deps --target "$code" "$root"
