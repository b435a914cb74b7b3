#!/bin/sh
# Makes the environment of benchmarks/diart_peer.py: diart 0.9.2 with what works with it, apart from ours, because it
# needs NumPy 1 and an older pyannote.audio. Takes about 7 GB, most of it torch's libraries.
#
#     sh scripts/setup_diart.sh [FOLDER]        # default: .venv-diart; then: --peer-python FOLDER/bin/python
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-"$here/.venv-diart"}
python=${PYTHON:-python3.11}
"$python" -m venv "$folder"
"$folder/bin/pip" install --quiet --constraint "$here/benchmarks/diart-constraints.txt" \
    diart==0.9.2 pyannote.audio safetensors soundfile
"$folder/bin/python" -W ignore -c 'import diart, numpy, pyannote.audio, torch
print("diart runs beside torch", torch.__version__, "pyannote.audio", pyannote.audio.__version__, "NumPy", numpy.__version__)'
