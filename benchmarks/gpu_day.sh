#!/usr/bin/env bash
# What only a GPU can say, in some minutes: the GPU tests, and speed and memory of the 7B with random weights.
#   bash benchmarks/gpu_day.sh            (make gpu) writes benchmarks/results/*-7b-cuda*.csv, with the card's name
# Each part has its own limit, and a part that fails does not stop the others.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
failed=""
part() {
    local limit=$1
    shift
    echo "== $* ($(date +%T))"
    timeout "$limit" "$PYTHON" "$@" || failed="$failed [$*]"
}
nvidia-smi -L || exit 2
part 120 -m pytest -m gpu tests/test_method_gpu.py tests/policies/openvla/test_policy_gpu.py
part 120 benchmarks/kernels.py
part 120 benchmarks/kernels.py --checkpointing
part 120 benchmarks/decisions.py --model 7b --device cuda --repeats 3
part 600 benchmarks/actor_update.py --model 7b --device cuda --trajectories "${TRAJECTORIES:-16}" --repeats "${REPEATS:-1}"
part 600 benchmarks/actor_update.py --model 7b --device cuda --trajectories "${TRAJECTORIES:-16}" --repeats "${REPEATS:-1}" --checkpointing --variants full-valid,pcm
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
