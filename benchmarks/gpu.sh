#!/bin/sh
# Test and measure skae on a machine with a GPU (CUDA) and Python 3.11 or later, in less
# than 8 minutes (without the time of downloads):
#
#     sh benchmarks/gpu.sh [DATA]
#
# DATA is the folder that `speed.py --data` reads (default: .data in the repository).
# Packages are installed into a temporary folder: from the wheels in benchmarks/wheels or
# .whl if there are any, else by pip those that are missing, as constraints.txt names
# them. PYTHON names another interpreter than python3.
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit
root=$(dirname "$here")
data=${1:-$root/.data}
python=${PYTHON:-python3}
site=$(mktemp -d) || exit
trap 'rm -rf "$site"' EXIT
cd "$root" || exit

install() {
    if "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install -q --no-compile --target "$site" "$@"
    else  # pip runs from its own wheel, too
        "$python" "$(ls "$wheels"/pip-*.whl | head -n 1)/pip" \
            install -q --no-compile --target "$site" "$@"
    fi
}

wheels=
for folder in "$here/wheels" "$root/.whl"; do
    if ls "$folder"/*.whl >/dev/null 2>&1; then wheels=$folder; fi
done
export PYTHONPATH="$site:$root" OMP_NUM_THREADS=1
if [ -n "$wheels" ]; then
    install --no-index --no-deps "$wheels"/*.whl || exit
elif ! "$python" -c "import torch, skorch, sklearn, safetensors, pytest, xdist" \
    2>/dev/null; then
    install -c constraints.txt ".[test]" || exit
    rm -rf "$site"/skae "$site"/skae-*  # the tests run in the repository
fi
# Warnings of other packages' plugins would be errors.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
"$python" -c "
import platform, torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(name, '- PyTorch', torch.__version__, '- Python', platform.python_version())
raise SystemExit(name is None and 'There is no GPU that PyTorch can use.')" || exit

echo "Tests that need a GPU"
# Only files with such tests: the others may need packages that are missing here.
timeout 180 "$python" -m pytest -q -p no:cacheprovider -p xdist -p xdist.looponfail \
    -W ignore::DeprecationWarning -W ignore::FutureWarning \
    --numprocesses=8 --durations=5 -m cuda $(grep -rl --include="*.py" "mark\.cuda" tests)
tests=$?

echo "Speed"
timeout 240 "$python" benchmarks/speed.py --data "$data" --device cuda --only device \
    --repeats 3
speed=$?

exit $((tests + speed))
