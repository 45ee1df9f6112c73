#!/bin/sh
# The comparisons of docs/evidence.md: each runs (or goes on) in runs/evidence-NAME, and collect.py copies into
# results/ what is shown of it.
#
#     sh benchmarks/comparisons.sh NAME [--jobs N] [key=value ...]
#
# toy        clean, few, short, rates, budgets, controls, timed, credit-tuning, credit, credit-few, credit-timed, overlap,
#            flow
# MetaWorld  metaworld, metaworld-tuning, metaworld-credit, metaworld-credit-pick-place
# LIBERO     libero, libero-tuning, libero-credit, libero-credit-four, overlap-libero, libero-pixels-tuning,
#            libero-pixels
#
# Success does not depend on --jobs; seconds do, so `timed` and `credit-timed` want the machine to itself and no --jobs.
set -eu
cd "$(dirname "$0")/.."
name=$1
shift
PATH=$PWD/${VENV:-.venv}/bin:$PATH
export OMP_NUM_THREADS=1

toy() {
    pcm-rl compare --config configs/pick_place.yaml name="evidence-$name" logger=none steps=60 eval_every=10 "$@"
}

libero() {  # its first task
    pcm-rl compare --config configs/libero_object_state.yaml name="evidence-$name" logger=none --methods '' \
        'env.tasks.task_id=[0]' env.kwargs.horizon=128 env.max_chunks=16 env.num_envs=1 \
        demos.path=null demos.episodes=5 sft.steps=800 sft.target=null groups=4 group_size=8 steps=8 \
        eval_every=2 eval_episodes=20 update.lr=1e-3 save_every=4 "$@"
}

# the critic of older versions, which learned from the last batch alone
batch=advantage.memory=0,advantage.steps=200,advantage.width=128,advantage.scale=null,advantage.every_group=false
# the critic where a run has some hundred rollouts, and where groups of one outcome are left out as well
few=advantage.memory=64,advantage.steps=24
critic3=method=top-critic,selection.budget=3,$few
both=advantage.every_group=false
often=eval_every=12
small=groups=20,group_size=1,$often  # rollouts without groups, in small steps
critic4=batch-critic-4:method=top-critic,selection.budget=4,$batch
fullcritic=full-batch-critic:method=full-critic,$batch
advantage8=top-advantage-8:method=top-advantage,selection.budget=8
random6=random-6:method=random-valid,selection.budget=6

case $name in
clean)
    toy --methods full-valid,pcm,random-valid --variant $fullcritic --variant $critic4 --variant $advantage8 \
        --variant $random6 --seeds 200-215 "$@" ;;
few)
    toy --methods full-valid,pcm,random-valid --variant $critic4 --variant $advantage8 --seeds 300-315 \
        demos.episodes=20 "$@" ;;
short)  # the horizon is soon behind the successes, as on LIBERO: failures are not much longer than they are
    toy --methods full-valid,pcm,random-valid,top-advantage --seeds 400-407 \
        env.kwargs.horizon=240 env.max_chunks=30 selection.budget=8 "$@" ;;
rates)
    full=method=full-valid
    pcm=method=pcm
    toy --methods full-valid,pcm --variant $random6 \
        --variant full-half-lr:$full,update.lr=1.5e-4 --variant full-twice-lr:$full,update.lr=6e-4 \
        --variant full-two:$full,update.minibatches=2 \
        --variant pcm-half-lr:$pcm,update.lr=1.5e-4 --variant pcm-twice-lr:$pcm,update.lr=6e-4 \
        --variant pcm-two:$pcm,update.minibatches=2 \
        --variant random-6-half-lr:${random6#*:},update.lr=1.5e-4 \
        --variant random-6-twice-lr:${random6#*:},update.lr=6e-4 \
        --variant random-6-two:${random6#*:},update.minibatches=2 \
        --seeds 111-113 "$@" ;;
budgets)
    toy --methods pcm,random-valid,top-phase --budgets 8,16,24 \
        --variant top-phase-12:method=top-phase,selection.budget=12 \
        --variant batch-critic-2:method=top-critic,selection.budget=2,$batch \
        --variant batch-critic-8:method=top-critic,selection.budget=8,$batch \
        --variant batch-critic-16:method=top-critic,selection.budget=16,$batch --seeds 200-203 "$@" ;;
controls)
    toy --methods full-valid,random-valid,pcm \
        --variant full-epochs-4:method=full-valid,update.epochs=4 \
        --variant pcm-equal-chunks:method=pcm,groups=22 \
        --variant random-padded:selection.name=random,selection.padding=keep \
        --seeds 200-202 "$@" ;;
timed)
    toy --methods full-padded,full-valid,pcm,random-valid --variant $fullcritic --variant $critic4 --variant $advantage8 \
        --seeds 200 "$@" ;;
metaworld)
    pcm-rl compare --config configs/metaworld_drawer_open.yaml name="evidence-$name" logger=none \
        --methods full-valid,pcm,random-valid,top-phase --seeds 1,2,3 \
        steps=15 eval_every=5 env.kwargs.horizon=150 env.max_chunks=19 "$@" ;;
libero)  # one task, five demonstrations; each seed records its own, since held-out states differ. Seeds 4 and 5 of
    # full-valid and batch-critic-3 were run by a second call with these two columns, and joined
    libero --methods full-valid,pcm,random-valid,top-phase,top-advantage \
        --variant batch-critic-3:method=top-critic,selection.budget=3,$batch --seeds 1,2,3 \
        eval_every=4 selection.budget=5 "$@" ;;
libero-tuning)  # one task of LIBERO, from five demonstrations: groups or none, rollouts a step, and learning rate
    mixed=groups=2,steps=16,eval_every=4,$both
    falling=$critic3,$mixed,update.lr_schedule=linear
    all=method=full-critic,$few,$mixed
    one=groups=16,group_size=1,steps=16,eval_every=4
    libero --variant mixed-2x8:$critic3,$mixed --variant mixed-4x8:$critic3,$both,advantage.steps=48 \
        --variant mixed-2x8-falling-10:$falling --variant mixed-2x8-falling-20:$falling,update.lr=2e-3 \
        --variant full-critic-2x8-10:$all --variant full-critic-2x8-3:$all,update.lr=3e-4 \
        --variant full-4x8-10:method=full-valid --variant full-2x8-10:method=full-valid,groups=2,steps=16,eval_every=4 \
        --variant full-4x8-3:method=full-valid,update.lr=3e-4 \
        --variant one-10:$critic3,$one --variant one-3:$critic3,$one,update.lr=3e-4 \
        --variant one-32:$critic3,groups=32,group_size=1,advantage.steps=48 --seeds 801-803 "$@" ;;
libero-credit|libero-credit-four)  # each as it was best in libero-tuning, at equal environment steps; `four` has two more
    critic=$critic3,$both,groups=2,steps=16,eval_every=4
    case $name in
    libero-credit)
        libero --variant full-valid-4x8:method=full-valid \
            --variant batch-critic-3:method=top-critic,selection.budget=3,$batch --variant top-critic-2x8:$critic \
            --baseline full-valid-4x8 --seeds 823-834 "$@" ;;
    *)
        libero --variant pcm-4x8:method=pcm,selection.budget=5 \
            --variant top-critic-2x8-policy:$critic,advantage.features=policy \
            --baseline pcm-4x8 --seeds 823-826 "$@" ;;
    esac ;;
libero-pixels-tuning|libero-pixels)  # a critic on the tiny OpenVLA's hidden states; README.md has the commands of the start
    full=method=full-valid
    critic=$critic3,$both,advantage.features=policy
    all=method=full-critic,$few,$both,advantage.features=policy
    pixels() {
        pcm-rl compare --config configs/openvla_tiny_libero.yaml name="evidence-$name" logger=none --methods '' \
            policy.openvla.checkpoint="${TINY:-checkpoints/tiny-sft-8}" sft.steps=0 env.num_envs=1 groups=2 group_size=8 "$@"
    }
    case $name in
    libero-pixels-tuning)
        pixels --variant full-3:$full,update.lr=3e-4 --variant full-10:$full,update.lr=1e-3 \
            --variant full-critic-3:$all,update.lr=3e-4 --variant full-critic-10:$all,update.lr=1e-3 \
            --variant critic-3:$critic,update.lr=3e-4 --variant critic-10:$critic,update.lr=1e-3 --seeds 805,806 \
            steps=12 eval_every=6 save_every=6 "$@" ;;
    *)
        pixels --variant full-valid-2x8:$full,update.lr=1e-3 --variant top-critic-2x8:$critic,update.lr=3e-4 \
            --baseline full-valid-2x8 --seeds 851-853 steps=32 eval_every=8 eval_episodes=40 save_every=4 "$@" ;;
    esac ;;
metaworld-tuning|metaworld-credit|metaworld-credit-pick-place)  # three choices for each method, tuned on drawer-open
    case $name in
    *pick-place) recipe=pick_place horizon=160 seeds=861-863 ;;
    *) recipe=drawer_open horizon=150 seeds=861-872 ;;
    esac
    metaworld() {
        pcm-rl compare --config configs/metaworld_$recipe.yaml name="evidence-$name" logger=none --methods '' \
            steps=15 eval_every=5 env.kwargs.horizon=$horizon "$@"
    }
    two=groups=2,steps=60,eval_every=20,update.epochs=1
    critic=$critic3,$both
    all=method=full-critic,$few,$both
    case $name in
    metaworld-tuning)
        metaworld --variant full-8x8-10:method=full-valid --variant full-8x8-3:method=full-valid,update.lr=3e-4 \
            --variant full-2x8-10:method=full-valid,$two \
            --variant full-critic-2x8-10:$all,$two --variant full-critic-2x8-3:$all,$two,update.lr=3e-4 \
            --variant full-critic-8x8-10:$all,advantage.steps=96 \
            --variant critic-2x8-10:$critic,$two --variant critic-2x8-3:$critic,$two,update.lr=3e-4 \
            --variant critic-8x8-10:$critic,advantage.steps=96 --seeds 811-813 "$@" ;;
    *)
        metaworld --variant full-valid-8x8:method=full-valid --variant pcm-8x8:method=pcm \
            --variant full-critic-8x8:$all,advantage.steps=96 --variant top-critic-8x8:$critic,advantage.steps=96 \
            --baseline full-valid-8x8 --seeds $seeds "$@" ;;
    esac ;;
credit-tuning)  # rollouts a step and learning rate, five choices for each method
    full=method=full-valid
    critic=method=full-critic,advantage.steps=5
    top=method=top-critic,selection.budget=4,advantage.steps=5
    toy --methods '' --variant full-80-3:$full,update.lr=3e-4 --variant full-80-6:$full,update.lr=6e-4 \
        --variant full-80-10:$full,update.lr=1e-3 \
        --variant full-20-3:$full,groups=2,$often,update.lr=3e-4 \
        --variant full-20-6:$full,groups=2,$often,update.lr=6e-4 \
        --variant critic-80-6:$critic,update.lr=6e-4 --variant critic-80-10:$critic,update.lr=1e-3 \
        --variant critic-20-3:$critic,$small,update.lr=3e-4 --variant critic-20-6:$critic,$small,update.lr=6e-4 \
        --variant critic-20-10:$critic,$small,update.lr=1e-3 \
        --variant top-80-6:$top,update.lr=6e-4 --variant top-80-10:$top,update.lr=1e-3 \
        --variant top-20-3:$top,$small,update.lr=3e-4 --variant top-20-6:$top,$small,update.lr=6e-4 \
        --variant top-20-10:$top,$small,update.lr=1e-3 \
        --seeds 610-612 steps=1000 env_steps=300000 eval_every=3 "$@" ;;
credit|credit-few|credit-timed)  # each with what was best for it in credit-tuning; batch-critic-4 as its recipe was
    case $name in credit) seeds=720-735 demos=30 ;; credit-few) seeds=740-755 demos=20 ;; *) seeds=720 demos=30 ;; esac
    new=method=top-critic,selection.budget=4,advantage.steps=5,$small,update.lr=6e-4
    toy --methods '' --variant full-valid-2x10:method=full-valid,groups=2,$often,update.lr=3e-4 \
        --variant full-critic-20:method=full-critic,advantage.steps=5,$small,update.lr=1e-3 \
        --variant pcm-2x10:method=pcm,groups=2,$often,update.lr=3e-4 \
        --variant $critic4,eval_every=4 --variant top-critic-20:$new \
        --variant top-critic-20-cut:$new,rollouts.cut=0.05 \
        --variant top-critic-20-policy:$new,advantage.features=policy \
        --variant top-critic-20-policy-cut:$new,advantage.features=policy,rollouts.cut=0.05 \
        --baseline full-valid-2x10 --seeds $seeds steps=2000 env_steps=800000 demos.episodes=$demos "$@" ;;
overlap)  # rollouts beside the update, one step stale; the rates of `credit`
    full=method=full-valid,groups=2,$often,update.lr=3e-4
    new=method=top-critic,selection.budget=4,advantage.steps=5,$small,update.lr=6e-4
    toy --methods '' --variant full-valid-2x10:$full --variant full-valid-2x10-overlap:$full,rollouts.overlap=true \
        --variant top-critic-20:$new --variant top-critic-20-overlap:$new,rollouts.overlap=true \
        --baseline full-valid-2x10 --seeds 760-767 steps=2000 env_steps=400000 "$@" ;;
flow)  # the six methods with the flow policy, B = 8, from a shorter supervised start than the recipe's, which leaves more
    pcm-rl compare --config configs/pick_place_flow.yaml name="evidence-$name" logger=none eval_every=10 \
        --methods full-valid,pcm,random-valid,top-advantage,full-critic,top-critic --seeds 800-807 sft.steps=600 steps=100 "$@" ;;
overlap-libero)  # one simulator on one core, so that another is free for the update, which takes four epochs; the start
    # is checkpoints/tiny-sft of docs/openvla.md, or TINY=FOLDER
    pcm-rl compare --config configs/openvla_tiny_libero.yaml name="evidence-$name" logger=none --methods '' \
        --variant pcm-one-after-the-other:method=pcm --variant pcm-overlap:method=pcm,rollouts.overlap=true \
        --baseline pcm-one-after-the-other --seeds 841-848 policy.openvla.checkpoint="${TINY:-checkpoints/tiny-sft}" \
        sft.steps=0 env.num_envs=1 groups=2 group_size=8 steps=6 eval_every=6 eval_episodes=10 save_every=0 \
        update.epochs=4 "$@" ;;
*)
    echo "unknown comparison $name; the first lines of $0 have their names" >&2
    exit 2 ;;
esac

python benchmarks/collect.py "$name"
