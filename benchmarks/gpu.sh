#!/bin/sh
# Test and measure skae on a machine with a GPU (CUDA) and Python 3.11 or later, in less
# than 5 minutes. From the repository root:
#
#     sh benchmarks/gpu.sh [DATA]
#
# DATA is the folder that `speed.py --data` reads (default: .data). Wheels of missing
# packages are installed from the folder .whl if there is one, into a temporary folder.
# PyTorch itself has to be installed.
set -u
data=${1:-.data}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -d .whl ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" \
        .whl/*.whl || exit
fi
export PYTHONPATH="$site:$PWD" OMP_NUM_THREADS=1
# Warnings of other packages' plugins would be errors.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
python3 -c "
import torch
print(torch.cuda.get_device_name(), '- PyTorch', torch.__version__)" || exit

echo "Tests that need a GPU"
# Only files with such tests: the others may need packages that are missing here.
timeout 110 python3 -m pytest -q -p no:cacheprovider -p xdist -p xdist.looponfail \
    -W ignore::DeprecationWarning -W ignore::FutureWarning \
    --numprocesses=8 --durations=5 -m cuda $(grep -rl --include="*.py" "mark\.cuda" tests)
tests=$?

echo "Speed"
timeout 150 python3 benchmarks/speed.py --data "$data" --device cuda --only device \
    --repeats 3
speed=$?

exit $((tests + speed))
