#!/bin/sh
# Step of the images: an environment with everything that speakerd needs, and not yet speakerd itself, so that a change
# of our code leaves this layer, of up to 5 GB, as it is.
#
#   deploy/image/dependencies.sh ENVIRONMENT CODE EXTRAS
#
# ENVIRONMENT  folder of the virtual environment, made here
# CODE         folder that code.sh will put speakerd into; the environment looks there
# EXTRAS       comma-separated extras of pyproject.toml
#
# Where deploy/air-gapped/collect.sh has brought wheels, nothing but them is used, and no network is asked. TORCH_INDEX
# in the environment names an index that is asked for PyTorch's wheels besides: its publisher keeps CPU wheels in one.
set -eu

environment=${1:?usage: dependencies.sh ENVIRONMENT CODE EXTRAS}
code=${2:?usage: dependencies.sh ENVIRONMENT CODE EXTRAS}
extras=${3:?usage: dependencies.sh ENVIRONMENT CODE EXTRAS}
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/deploy/image/sources.sh"

requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
python3 "$root/deploy/image/requirements.py" "$root/pyproject.toml" "$extras" > "$requirements"

python3 -m venv "$environment"
set -- --quiet --constraint "$root/constraints.txt"
[ -z "${TORCH_INDEX:-}" ] || set -- "$@" --extra-index-url "$TORCH_INDEX"
"$environment/bin/python" -m pip install "$@" --requirement "$requirements"
case ",$extras," in
    *,all,* | *,node,*)
        # Its weights are all that is wanted of it; its dependencies are old and many, and are never imported.
        "$environment/bin/python" -m pip install "$@" --no-deps Resemblyzer==0.1.4
        ;;
esac
site=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$code" > "$site/speakerd-code.pth"
