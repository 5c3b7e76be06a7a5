#!/bin/sh
# Try the project with another interpreter: tools/other_python.sh PYTHON [ARGUMENTS OF PYTEST]
# It installs the pinned packages into a virtual environment of its own (.venv-3.12 and so on; without a GPU
# and without PyTorch's CPU index that is several gigabytes), compiles every file with warnings as errors, and
# runs the tests. A version comes into pyproject.toml's classifiers once all of them pass.
set -eu
python=$1
shift
cd "$(dirname "$0")/.."
venv=.venv-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
sh tools/install.sh "$python" "$venv"
compiled=$(mktemp -d)
trap 'rm -rf "$compiled"' EXIT
PYTHONPYCACHEPREFIX="$compiled" "$venv/bin/python" -W error -m compileall -q src tests tools benchmarks
PYTHONPATH=src:tests "$venv/bin/python" -m pytest "$@"
