#!/usr/bin/env bash
# What only a GPU can say, with random weights: GPU tests, whole training steps of the 7B's recipe beside what a plan
# says, speed and memory of update and decisions. What nobody has timed yet comes early.
#
#   bash benchmarks/gpu_day.sh                          (make gpu) 45 minutes on an H100, about; CSV in benchmarks/results
#   MINUTES=10 bash benchmarks/gpu_day.sh               no part begins after ten minutes
#   TRAJECTORIES=8 STEP_GROUPS=2 bash ...               smaller updates, and steps of two groups of rollouts
#   PARTS="profile steps-overlap" bash ...              only these parts
#   DEVICE=cpu MODEL=tiny bash benchmarks/gpu_day.sh    a rehearsal without a GPU: nothing of it is a measurement
#   DEVICE=simulated MODEL=tiny ...                     the same on tests/fake_cuda.py, without overlap and compiler
#
# A part ends after its own limit of at most ten minutes. One that fails does not stop the others; the last lines say
# which did. What is finished for this card, this code and these settings is not run again, so the same command goes on
# after a break. RESULTS is the folder of the CSV, WORK has the parts' output and notes what is finished.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python} DEVICE=${DEVICE:-cuda} MODEL=${MODEL:-7b} MINUTES=${MINUTES:-600}
export PYTHONPATH=$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
interpreter=$PYTHON results=runs/gpu-day/rehearsal device=$DEVICE card=$DEVICE
simulated="$interpreter tests/fake_cuda.py"
case $DEVICE in
    cuda)
        card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>&1) && [ -n "$card" ] ||
            { echo "no GPU here ($card); DEVICE=cpu MODEL=tiny rehearses without one"; exit 2; }
        card=$(echo "$card" | head -n 1) results=benchmarks/results
        ;;
    simulated) PYTHON=$simulated device=cuda ;;
    cpu) ;;
    *) echo "DEVICE is $DEVICE; expected cuda, cpu or simulated"; exit 2 ;;
esac
export PYTHON PCM_RL_RESULTS=${RESULTS:-$results}
if [ "$MODEL" = tiny ]; then # small enough for one core beside other work
    T=${TRAJECTORIES:-4} few=2 chunk=0.01 fast=0.005 rows=1,2 small="--rows 4"
    step="threads=1 groups=2 group_size=4 env.num_envs=2 selection.budget=2 env.kwargs.horizon=48"
    step="$step env.tasks.task_id=[0] env.num_states=20 env.eval_states=4"
    env="$step env.kwargs.success_chunks=3" libero="$step group_size=2 env.kwargs.horizon=8 env.kwargs.camera_size=112"
else
    T=${TRAJECTORIES:-16} few=$((${TRAJECTORIES:-16} / 2)) chunk=0.26 fast=0.1 rows=1,2,4,8,16,32,64 small=""
    env="" libero=""
fi
[ -z "${STEP_GROUPS:-}" ] || env="$env groups=$STEP_GROUPS"
code=$(find pcm_rl benchmarks tests configs \( -name '*.py' -o -name '*.sh' -o -name '*.yaml' \) | LC_ALL=C sort |
    xargs cat | sha1sum | cut -c 1-8)
WORK=${WORK:-runs/gpu-day/$(echo "$card" | tr -c 'A-Za-z0-9\n' -)-$code}
mkdir -p "$WORK" "$PCM_RL_RESULTS"
done_now="" failed="" left="" before="" child=""

summary() {
    echo "== $card, $MODEL, code $code, $((SECONDS / 60)) minutes; tables in $PCM_RL_RESULTS, output in $WORK"
    [ -z "$before" ] || echo "finished before:$before"
    [ -z "$done_now" ] || echo "done:$done_now"
    [ -z "$left" ] || echo "not begun, MINUTES=$MINUTES are over:$left"
    [ -z "$failed" ] || echo "failed:$failed"
}
interrupted() {
    [ -z "$child" ] || { kill "$child"; wait "$child"; }
    summary
    exit 130
}
trap interrupted INT TERM

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 status start=$SECONDS
    shift 2
    case " ${PARTS:-$name} " in *" $name "*) ;; *) return ;; esac
    local mark
    mark=$WORK/$name.$(echo "$PCM_RL_RESULTS $*" | sha1sum | cut -c 1-8).done
    if [ -e "$mark" ]; then before="$before $name"; return; fi
    if [ $SECONDS -ge $((MINUTES * 60)) ]; then left="$left $name"; return; fi
    echo "== $name ($(date +%T)): $*"
    timeout -k 30 "$limit" "$@" > >(tee "$WORK/$name.log") 2>&1 &
    child=$!
    wait $child
    status=$?
    child=""
    if [ "$status" = 0 ]; then
        touch "$mark"
        done_now="$done_now $name($((SECONDS - start))s)"
    elif [ "$status" = 124 ] || [ "$status" = 137 ]; then
        failed="$failed $name(over ${limit}s)"
    else
        failed="$failed $name(exit $status)"
    fi
}
steps() { # NAME ARGUMENTS...
    local name=$1
    shift
    part "$name" 600 $PYTHON benchmarks/recipe_steps.py "$@" --model "$MODEL" --device "$device"
}
update() { # NAME ARGUMENTS...
    local name=$1
    shift
    part "$name" 600 $PYTHON benchmarks/actor_update.py --model "$MODEL" --device "$device" $small \
        --repeats "${REPEATS:-1}" "$@"
}
kernels() { # NAME ARGUMENTS... ; for its memory it needs a GPU or the simulated one
    local name=$1
    shift
    [ "$DEVICE" = cuda ] || set -- --unprofiled "$@"
    [ "$DEVICE" = cpu ] && local PYTHON=$simulated
    part "$name" 180 $PYTHON benchmarks/kernels.py --model "$MODEL" "$@"
}

part tests 240 $interpreter -m pytest -m gpu tests/test_method_gpu.py tests/policies/openvla/test_policy_gpu.py \
    tests/policies/pi0/test_policy_gpu.py
# compiled blocks directly before the same without
[ "$DEVICE" = simulated ] || update update-compiled --compile --trajectories "$few" --variants full-valid,pcm
update update --trajectories "$T" --variants full-padded,full-valid,clip-ppo-loss,pcm
steps steps-fast-simulator pcm --chunk-s $fast $env
steps steps-pcm pcm --chunk-s $chunk $env
[ "$DEVICE" = simulated ] || steps steps-overlap pcm-overlap --chunk-s $chunk $env # it has no streams
steps steps-full-valid full-valid --chunk-s $chunk $env
steps profile profile --chunk-s $chunk $env
steps steps-decisions pcm-decisions --chunk-s $chunk $env
part decisions 300 $PYTHON benchmarks/decisions.py --model "$MODEL" --device "$device" --repeats 3 --rows $rows
kernels kernels
kernels kernels-checkpointing --checkpointing
steps steps-merged pcm-merged --chunk-s $chunk $env
update update-checkpointing --checkpointing --trajectories "$few" --variants simplevla-style,full-padded,full-valid,pcm
part filling 600 $PYTHON benchmarks/filling.py measure --model "$MODEL" --device "$device" --chunk-s $fast \
    --trajectories $((2 * few))
if $interpreter -c "from pcm_rl.envs.libero.package import find_libero; print(find_libero())"; then
    steps steps-libero pcm --libero --steps 1 $libero
else
    echo "LIBERO is not installed: no rollout on it"
fi

summary
[ -z "$failed" ]
