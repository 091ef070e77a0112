#!/usr/bin/env bash
# What only a GPU can show, in one command: the tests marked gpu, written down with hardware, versions and commit.
#
#     bench/gpu.sh [OUTPUT_FOLDER]          default: bench/results
#
# Needs a CUDA torch in $PYTHON (default: python3). Missing packages are installed into a throw-away environment on top
# of it, from the folder of wheels $WHEELS on a machine without a network, else from the package index.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-bench/results}
python=${PYTHON:-python3}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    { echo "gpu.sh: torch in $python sees no CUDA device; set PYTHON to an interpreter that does" >&2; exit 2; }

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$python" -m venv --system-site-packages "$environment"
# A venv made from a venv sees only the outermost interpreter's packages: add those that $PYTHON itself sees.
"$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' >"$("$environment/bin/python" -c \
    'import site; print(site.getsitepackages()[0])')/outer.pth"
index=()
[ -z "${WHEELS:-}" ] || index=(--no-index --find-links "$WHEELS")
"$environment/bin/python" -m pip install --quiet "${index[@]}" "setuptools>=77,<82" wheel
"$environment/bin/python" -m pip install --quiet --no-build-isolation "${index[@]}" -e ".[test]"

mkdir -p "$output"
name=$("$environment/bin/python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')
report=$output/$(date +%F)-$name.md
status=0
tests=$("$environment/bin/python" -m pytest -m gpu -p no:cacheprovider 2>&1) || status=$?
{
    printf '# GPU tests, %s\n\n' "$(date +%F)"
    "$environment/bin/python" -c '
import platform, torch, transformers, triton
gib = torch.cuda.get_device_properties(0).total_memory / 2**30
print(f"Hardware: {torch.cuda.get_device_name()}, {gib:.0f} GiB.")
print(f"Software: Python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}, "
      f"transformers {transformers.__version__}.")'
    printf 'Commit: %s. Command: `bench/gpu.sh`. Exit status of the tests: %s.\n\n```\n%s\n```\n' \
        "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$status" "$tests"
} >"$report"
printf '%s\n' "$tests"
echo "written to $report"
exit "$status"
