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
say() { echo "[$1/3] $2"; }
# Of pip, errors alone: its warnings are of its own configuration.
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -qq "$@"; }
has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

if [ -x "$venv/bin/python" ]; then
    say 1 "the environment $venv is there"
else
    say 1 "creating the environment $venv"
    "$python" -m venv "$venv"
fi

torch=$(grep '^torch==' constraints.txt)
installed=$("$venv/bin/python" -c 'from importlib.metadata import version as v; print("torch==" + v("torch").split("+")[0])' 2>/dev/null || true)
if [ "$installed" = "$torch" ]; then
    say 2 "PyTorch ${torch#torch==} is there"
elif [ "$(uname -s)" = Linux ] && ! has_gpu; then
    say 2 "installing PyTorch ${torch#torch==}, its CPU build as there is no NVIDIA GPU (about 190 MB) ..."
    problem=$(pip install --no-deps --retries 0 --timeout 10 \
        --index-url https://download.pytorch.org/whl/cpu "$torch" 2>&1) || {
        echo "      PyTorch's index of CPU builds gave none: $(echo "$problem" | tail -n 1)"
        echo "      It comes from the default index instead, where it may bring CUDA along (several GB)."
    }
elif [ "$(uname -s)" = Linux ]; then
    say 2 "PyTorch ${torch#torch==} comes with the others, with CUDA (about 3 GB)"
else
    say 2 "PyTorch ${torch#torch==} comes with the others"
fi

say 3 "installing kilopix and the other packages (about 500 MB, some minutes) ..."
pip install -c constraints.txt -e '.[dev]'
echo "      ready: $("$venv/bin/kilopix" --version) in $venv"
