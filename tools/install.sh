#!/bin/sh
# Set up a virtual environment with kilopix in it: tools/install.sh PYTHON VENV
# Without an NVIDIA GPU it takes the CPU build of torch, which spares gigabytes of CUDA.
set -eu
python=$1
venv=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "kilopix needs Python 3.11 or newer; call: make PYTHON=/path/to/python3.11" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
torch=$(grep '^torch==' constraints.txt)

installed=$("$venv/bin/python" -c 'from importlib.metadata import version as v; print("torch==" + v("torch").split("+")[0])' 2>/dev/null || true)
if [ "$installed" != "$torch" ]; then
    if [ "$(uname -s)" = Linux ] && ! { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }; then
        pip install -q --no-deps --retries 0 --timeout 10 \
            --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
            echo "PyTorch's CPU index does not answer; taking torch from the default index."
    fi
fi
pip install -q -c constraints.txt -e '.[dev]'
