"""A recipe, tried part by part without training: one environment, the policy, a few episodes, the cost of an update."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import time
from collections.abc import Iterator
from typing import Any

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import create_empty_array
from tensordict import TensorDict

from pcm_rl.checks.attempt import attempt, described
from pcm_rl.checks.machine import GIB, disk, run_folder, shared_memory
from pcm_rl.checks.one_environment import look_at_environment, phases_of
from pcm_rl.checks.rendering import Backends
from pcm_rl.config import Config, ConfigError, EnvConfig
from pcm_rl.episodes import INSTRUCTION, label_episodes
from pcm_rl.policies.family import Recomputes, bins_of
from pcm_rl.rollouts.collect import collect_episodes
from pcm_rl.rollouts.decisions import Decisions
from pcm_rl.rollouts.environments import make_task, make_vector_env, phase_rule
from pcm_rl.rollouts.first_look import Finding, first_look
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.rollouts.rows import episode_outcomes, listens
from pcm_rl.training.checkpoint import policy_metadata
from pcm_rl.training.cuts import Cuts
from pcm_rl.training.forecast import ADAM
from pcm_rl.training.grpo import GRPO
from pcm_rl.training.memory import ROOM, available_bytes, micro_batch_rows, row_bytes, wants_checkpointing
from pcm_rl.training.probe import check_log_probs
from pcm_rl.training.run_folder import check_logger
from pcm_rl.training.slots import with_slots

FEW_WORKERS, FEW_ENVIRONMENTS = 4, 16  # environments of the check, where the recipe has more
GROUPS = 2  # episodes from so many initial states


def recipe_findings(config: Config) -> Iterator[Finding]:
    """Everything about a recipe that can be seen without training.

    A check that depends on one that failed is left out.
    """
    torch.manual_seed(config.seed)
    yield run_folder(config.folder)
    if (yield from attempt("extras", lambda: _check_extras(config))):
        yield Finding("extras", "ok", f"logger {config.logger}, policy family {config.policy.family}: installed")
    if not (yield from attempt("initial states", lambda: _check_split(config))):
        return
    looked = yield from look_at_environment(config)
    if "environment" in looked.failed:
        return
    yield from _rendering(config, mujoco=looked.mujoco)
    few = dataclasses.replace(config, env=_few(config.env))
    with contextlib.ExitStack() as stack:
        started = time.perf_counter()
        env = yield from attempt("environments", lambda: make_vector_env(few.env))
        if env is None:
            return
        stack.enter_context(contextlib.closing(env))
        where = "a process each" if config.env.workers else "in this process"
        seconds = time.perf_counter() - started
        yield Finding("environments", "ok", f"{few.env.num_envs} of {config.env.num_envs}, {where}, {seconds:.1f} s")
        if config.env.workers:
            yield shared_memory(config.env.num_envs * _observation_bytes(env))
        yield from _training(few, config, env, same_starts=config.env.same_starts and "starts" not in looked.failed)


def _training(few: Config, config: Config, env: VectorEnv, *, same_starts: bool) -> Iterator[Finding]:
    """Policy, episodes and update; ``few`` is ``config`` with fewer environments."""
    sized = yield from attempt("slots", lambda: with_slots(few, env))
    if sized is None:  # named; the rest is looked at with slots that fit
        sized = with_slots(dataclasses.replace(few, env=dataclasses.replace(few.env, max_chunks=None)), env)
    grpo = yield from attempt("policy", lambda: GRPO(sized, env))
    if grpo is None:
        return
    trained = sum(p.numel() for p in grpo.policy.parameters() if p.requires_grad)
    yield Finding("policy", "ok", f"{config.policy.family}, {trained / 1e6:.2f} M parameters are trained")
    yield from attempt("cut", lambda: Cuts(grpo.config, env, grpo.credit))
    reach = yield from attempt("action box", lambda: _reach(grpo.policy, env.single_action_space))
    if reach is not None:
        yield reach
    rows = yield from attempt("episodes", lambda: _play(sized, env, grpo, same_starts=same_starts))
    if rows is None:
        return
    assert isinstance(env.single_action_space, spaces.Box)
    bins, slots = bins_of(grpo.policy), grpo.config.env.slots
    for finding in first_look(rows, env.single_action_space, slots, bins=bins, taught=config.begins_trained):
        yield _before_the_start(finding, rows, config)
    if not _will_be_taught(config):  # else the phases of a demonstration say more
        phase = yield from attempt("phases", lambda: label_episodes(rows, **phase_rule(config.env)))
        if phase is not None:
            yield phases_of(config, phase)
    distance = yield from attempt("log-probs", lambda: check_log_probs(grpo.policy, rows))
    if distance is not None:
        yield Finding("log-probs", "ok", f"recorded and computed again, they differ by {distance:.1g}")
    memory = yield from attempt("update", lambda: _memory(config, grpo, rows, trained))
    if memory is not None:
        yield memory
    yield disk(config.folder, 4 * ADAM * trained)


def _check_extras(config: Config) -> bool:
    check_logger(config.logger)
    policy, wanted = config.policy, {}
    if policy.family == "openvla":
        wanted = {"tokenizers": "vla"} | ({"bitsandbytes": "qlora"} if policy.openvla.quantize else {})
    if policy.family == "pi0":
        wanted = {"transformers": "pi0"} | ({"peft": "pi0"} if policy.pi0.train == "lora" else {})
    for package, extra in wanted.items():
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"policy.family={policy.family} needs {package}; run: pip install 'pcm_rl[{extra}]'")
    return True


def _check_split(config: Config) -> bool:
    states = InitialStates.of(config)
    if config.policy.init is not None:
        states.check_policy(policy_metadata(config.policy.init), config.env.id)
    return True


def _few(env: EnvConfig) -> EnvConfig:
    return dataclasses.replace(env, num_envs=min(env.num_envs, FEW_WORKERS if env.workers else FEW_ENVIRONMENTS))


def _observation_bytes(env: VectorEnv) -> int:
    return _bytes(create_empty_array(env.single_observation_space, n=1))


def _bytes(observation: Any) -> int:
    parts = observation.values() if isinstance(observation, dict) else None
    return int(observation.nbytes) if parts is None else sum(map(_bytes, parts))


def _play(config: Config, env: VectorEnv, grpo: GRPO, *, same_starts: bool) -> TensorDict:
    size = max(2, min(config.group_size, env.num_envs // GROUPS))
    states = InitialStates.of(config)
    init_state = states.deal(GROUPS).repeat_interleave(size)
    group = torch.arange(GROUPS).repeat_interleave(size)
    rows = collect_episodes(
        env,
        grpo.policy,
        init_state,
        group,
        device=config.device,
        task=states.task_of(init_state),
        same_starts=same_starts,
        decisions=Decisions.of(config.rollouts),
    )
    return rows if listens(grpo.policy) else rows.exclude(INSTRUCTION)


def _will_be_taught(config: Config) -> bool:
    return config.sft.steps > 0 and config.policy.init is None


def _before_the_start(finding: Finding, rows: TensorDict, config: Config) -> Finding:
    """What a finding means where the policy is untrained and the supervised start is still to come."""
    if finding.name not in ("success", "head") or not _will_be_taught(config):
        return finding
    if finding.name == "head":
        return Finding("head", "ok", "of the untrained policy; the supervised start comes before training")
    success, _ = episode_outcomes(rows)
    count = f"{int(success.sum())} of {len(success)} episodes of the untrained policy succeeded"
    if bool(success.all()):
        text = f"{count}: is success read from the right place (env.success)? There is nothing to learn"
        return Finding("success", "fail", text)
    return Finding("success", "ok", f"{count}; the supervised start comes before training")


def _reach(policy: Any, space: Any) -> Finding:
    """Whether the policy's tokens can say the actions of the box: its ends, as they come out of the tokenizer."""
    tokenizer = getattr(policy, "action_tokenizer", None)
    if tokenizer is None:
        return Finding("action box", "ok", f"{space}; the policy's actions are numbers without bins")
    if not hasattr(tokenizer, "decode"):
        return Finding("action box", "ok", f"{space}; the tokenizer cannot be asked what it reaches")
    low, high = (torch.from_numpy(bound) for bound in (space.low, space.high))
    if not bool(torch.isfinite(high - low).all()):
        text = "the action box has no bounds; give it some (gymnasium.wrappers:RescaleAction in env.wrappers)"
        return Finding("action box", "fail", text)
    ends = torch.stack([tokenizer.decode(tokenizer.encode(bound)) for bound in (low, high)]).double()  # [2, L, D]
    reached = ((ends[1] - ends[0]).abs() / (high - low).double().clamp_min(1e-12)).amin(0)  # [D]
    shares = ", ".join(f"{float(share):.0%}" for share in reached)
    if bool((reached < 0.5).all()):
        return Finding(
            "action box",
            "fail",
            f"the policy reaches {shares} of the box [{space.low.min():g}, {space.high.max():g}]; give the environment "
            "the box of the policy (gymnasium.wrappers:RescaleAction in env.wrappers)",
        )
    return Finding("action box", "ok", f"the policy reaches {shares} of it")


def _memory(config: Config, grpo: GRPO, rows: TensorDict, trained: int) -> Finding:
    policy, free = grpo.policy, available_bytes(next(grpo.policy.parameters()).device)
    if isinstance(policy, Recomputes):
        recompute, _ = wants_checkpointing(policy, rows, grpo.config)
        policy.set_checkpointing(recompute)
    number = micro_batch_rows(policy, rows, grpo.config)
    need = row_bytes(policy, rows) * number + 4 * ADAM * trained
    text = (
        f"{number} chunks at a time take {need / GIB:.2f} GiB with gradients and AdamW, {free / GIB:.1f} GiB are free"
    )
    if need < ROOM * free:
        return Finding("update", "ok", text)
    return Finding(
        "update",
        "fail",
        f"{text}; give a smaller update.micro_rows (or micro_tokens), which does not change the gradient",
    )


def _rendering(config: Config, *, mujoco: bool) -> Iterator[Finding]:
    """Back-ends where the recipe uses MuJoCo, and a frame where it makes films."""
    sees = config.env.images is not None or config.env.kwargs.get("observation") == "pixels"
    if mujoco and (sees or config.record):
        backends = Backends()
        try:
            finding = backends.finding(needed=sees)
        finally:
            backends.close()
        yield finding
        if finding.level != "ok":
            return
    if config.record:
        yield _films(config)


def _films(config: Config) -> Finding:
    try:
        with contextlib.closing(make_task(config.env, 0, render_mode="rgb_array")) as env:
            env.reset(options={"init_state": 0})
            frame: Any = env.render()
    except Exception as error:  # a report without films is a report
        return Finding("films", "warn", f"none: {described(error)}; record=false leaves them out")
    if getattr(frame, "ndim", 0) != 3:
        return Finding("films", "warn", f"none: render() gives {type(frame).__name__}; record=false leaves them out")
    return Finding("films", "ok", f"frames of {frame.shape[1]} x {frame.shape[0]}")
