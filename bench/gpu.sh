#!/usr/bin/env bash
# What only a GPU can show, in one command of less than ten minutes: the CUDA library (where there is nvcc; into
# kernels/), the tests marked gpu, the benchmark of the ops, one whole update, compute-sanitizer, the row pass alone, the
# tuning sweep, written down with date, hardware, versions and commit. What is worth most comes first. A section that
# fails or runs out of time is recorded, the others still run, and the exit status is 1.
#
#     bench/gpu.sh [OUTPUT_FOLDER]     default: bench/results; gets DATE-HARDWARE.md and its JSON, CSV and PNG files
#
#     PYTHON   interpreter with a CUDA torch (default: python3)
#     WHEELS   folder of wheels, installed into a throw-away folder; nothing is ever fetched
#     TOTAL    seconds for everything (default: 570)
#     COMMIT   what to write down as the commit where there is no git
#
# $PYTHON must have torch, triton, transformers, numpy, safetensors, pyyaml, rich, jinja2, matplotlib, pytest and
# hypothesis. What else is wanted goes into WHEELS: the first line must be there, the second is of competitors. For
# Python 3.12, 6 MiB:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels \
#         jaxtyping==0.3.11 wadler-lindig==0.1.8 beartype==0.23.1 jsonargparse==4.53.0 \
#         liger-kernel==0.8.5 cut-cross-entropy==25.1.1 verl==0.9.1 trl==1.16.0
#
# The implementation hopper, QuACK and Liger's Hopper kernels need NVIDIA's CuTe DSL as well, another 97 MiB. Without it
# their rows say so:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d wheels \
#         quack-kernels==0.6.5 apache-tvm-ffi==0.1.15.post2 torch-c-dlpack-ext==0.1.5 nvidia-cutlass-dsl==4.8.1 \
#         nvidia-cutlass-dsl-libs-core==4.8.1 nvidia-cutlass-dsl-libs-base==4.8.1 nvidia-cutlass-dsl-libs-cu13==4.8.1
set -uo pipefail
cd "$(dirname "$0")/.."
output=${1:-bench/results}
python=${PYTHON:-python3}
total=${TOTAL:-570}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 FASTFLOW_NATIVE=0
export COMMIT=${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    { echo "gpu.sh: torch in $python sees no CUDA device; set PYTHON to an interpreter that does" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site=$work/site-packages # QuACK tells by this name what is an installed package, and refuses epilogues that use others
mkdir -p "$output" "$site"
export PYTHONPATH=$site:$site/nvidia_cutlass_dsl/dsl_packages:$PWD/kernels:$PWD

hardware=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')
stem=$(date +%F)-$hardware
report=$output/$stem.md
status=0

# section TITLE SECONDS COMMAND...: runs it for at most so long, shows the end of what it says, notes how it went
section() {
    local title=$1 limit=$2 log outcome started=$SECONDS code=0
    shift 2
    log=$work/log
    printf '\n=== %s (at %ss, at most %ss)\n' "$title" "$SECONDS" "$limit"
    if [ "$limit" -lt 10 ]; then
        echo "no time left" >"$log"
        code=124
    else
        timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 || code=$?
    fi
    case $code in
        0) outcome=passed ;;
        124 | 137) outcome="out of time" ;;
        *) outcome="failed, status $code" ;;
    esac
    [ "$code" -ne 0 ] || ! grep -q ': skipped, ' "$log" || outcome=skipped
    [ "$code" -eq 0 ] || status=1
    [ "$code" -ne 124 ] || grep -E 'FAILED|ERROR' "$log" # which a summary that never came would have named
    tail -n 60 "$log"
    printf '%s: %s\n' "$title" "$outcome"
    printf '| %s | %s | %s s |\n' "$title" "$outcome" $((SECONDS - started)) >>"$work/summary"
    if [ "$code" -ne 0 ] || { [ "$title" != Benchmark ] && [ "$title" != "One update" ]; }; then # their tables stand above
        printf '\n## %s: %s\n\n```\n%s\n```\n' "$title" "$outcome" "$(grep -E 'FAILED|ERROR' "$log"; tail -n 60 "$log")" >>"$work/details"
    fi
}

# at_most SECONDS RESERVED: the smaller of these seconds and what is left without those reserved for later sections
at_most() {
    local left=$((total - SECONDS - $2))
    echo $((left < $1 ? left : $1))
}

if [ -n "${WHEELS:-}" ]; then
    section "Installing the wheels" 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile \
        --no-cache-dir --disable-pip-version-check --target "$site" "$WHEELS"/*.whl
fi
section "CUDA library" "$(at_most 60 180)" "$python" csrc/build_cuda.py
workers=()
! "$python" -c 'import xdist' 2>/dev/null || workers=(-n 10) # most of their time goes to compiling kernels
section "Tests" "$(at_most 150 300)" "$python" -m pytest tests/{kernels,csrc,bench,fastflow} -m gpu -p no:cacheprovider -v --tb=short \
    "${workers[@]}"
seconds=$(at_most 200 170)
section "Benchmark" "$seconds" "$python" -m bench.kernels --device cuda --group-seconds 8 --also fastflow@4GiB \
    --budget $((seconds > 90 ? seconds - 70 : 20)) --output "$output" --name "$stem-kernels"
section "One update" "$(at_most 85 80)" "$python" -m bench.step --device cuda --seconds 70 \
    --output "$output" --name "$stem-step"
section "The same, bfloat16 residual stream" "$(at_most 45 80)" "$python" -m bench.step --device cuda --seconds 30 \
    --contestant fastflow --ours residual_stream=bfloat16 --json "$output/$stem-step-bfloat16-stream.json"
section "Peaked logits" "$(at_most 30 80)" "$python" -m bench.kernels --device cuda --shape 4096x2048x32000 --op flow_loss \
    --deviation 8 --provider fastflow --provider eager --provider gemms --repeats 3 --json "$output/$stem-peaked.json"
section "compute-sanitizer memcheck" "$(at_most 60 20)" "$python" -m bench.sanitize --tool memcheck
section "compute-sanitizer racecheck" "$(at_most 60 20)" "$python" -m bench.sanitize --tool racecheck
section "Row pass" "$(at_most 30 20)" "$python" -m bench.row_pass
section "Tuning" "$(at_most 90 10)" "$python" -m bench.tune --json "$output/$stem-tune.json"

{
    printf '# GPU run, %s\n\n' "$(date +%F)"
    "$python" -c 'from bench.environment import describe; from bench.report import Record
print(Record(describe("cuda")).heading())'
    printf '\nCommand: `bench/gpu.sh`, %s s in all.\n\n| section | outcome | time |\n|---|---|---|\n' "$SECONDS"
    cat "$work/summary"
    if [ -e "$output/$stem-kernels.md" ]; then
        printf '\n## Tables\n\n'
        sed 1,2d "$output/$stem-kernels.md"
    fi
    if [ -e "$output/$stem-step.md" ]; then
        printf '\n## One update\n\n'
        cat "$output/$stem-step.md"
    fi
    cat "$work/details"
} >"$report"
echo "written to $report"
exit "$status"
