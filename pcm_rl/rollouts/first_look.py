"""A look at the first episodes of a run: what would make training wrong or useless, with its remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor

from pcm_rl.episodes import CHUNK, CHUNK_ID, GROUP, IS_PAD, LOG_PROBS, SUCCESS
from pcm_rl.phases import Phase
from pcm_rl.rollouts.rows import episode_outcomes
from pcm_rl.rollouts.starts import first_observations

NARROW = 0.25  # of the box: actions that use less of it in every dimension belong to another box
MARGIN = 0.05  # of the width of the box: this near to an end counts as at the end
STUCK = 0.95  # share of actions at an end of the box
# Nats below log A. Random heads of 256 bins at a temperature of 1.6 have up to 0.23, and the toy's less; after 100
# gradient steps on one demonstration it has more than 0.8, a policy with some success more than 1.7.
UNIFORM = 0.25


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: What was checked, in a word or two.
        level: ``ok``; ``warn`` where a run would work and may be useless; ``fail`` where it cannot be right.
        text: What was found, and what to do.
    """

    name: str
    level: Literal["ok", "warn", "fail"]
    text: str

    def as_dict(self) -> dict[str, str]:
        """Plain text."""
        return asdict(self)


def first_look(
    rows: TensorDictBase, space: spaces.Box, slots: int, *, bins: int | None = None, taught: bool = True
) -> Iterator[Finding]:
    """Everything that can be seen in the rows of a run's first episodes, whatever the rule and the policy.

    That episodes of one group begin alike is checked where they are collected (:mod:`pcm_rl.rollouts.starts`).

    Args:
        rows: ``[M]`` rows of whole episodes.
        space: The actions of a chunk, ``Box [L, D]``.
        slots: Chunk slots of an episode.
        bins: A, tokens that the policy chooses from; None where it does not say.
        taught: Whether the policy is one that was trained before this run's first step.
    """
    yield look_at_length(rows, slots)
    yield look_at_groups(rows)
    yield look_at_actions(rows.get(CHUNK), rows.get(IS_PAD), space)
    outcomes = look_at_outcomes(rows)
    head = None if bins is None else look_at_head(rows.get(LOG_PROBS), rows.get(IS_PAD), bins)
    if head is None:
        yield outcomes
    elif head.level == "ok":
        yield head
        yield outcomes
    elif not bool(rows.get(SUCCESS).any()):  # one cause, one line
        yield Finding("success", "warn", f"{_count(rows)}, and {head.text}")
    else:
        yield head if taught else Finding("head", "ok", "almost uniform: the policy begins untrained")
        yield outcomes


def look_at_length(rows: TensorDictBase, slots: int) -> Finding:
    """Whether every episode of ``rows [M]`` has at most ``slots`` chunks."""
    longest = int(rows.get(CHUNK_ID).max()) + 1
    if longest <= slots:
        return Finding("slots", "ok", f"the longest episode has {longest} chunks, of {slots} slots")
    return Finding(
        "slots",
        "fail",
        f"an episode has {longest} chunks, more than the {slots} slots of env.max_chunks; give env.max_chunks="
        f"{longest} or more, or an environment with a horizon (a TimeLimit, or an attribute horizon)",
    )


def look_at_groups(rows: TensorDictBase) -> Finding:
    """Whether groups have different starts; with a single group nothing can be said."""
    first = (rows.get(CHUNK_ID) == 0).nonzero().flatten()
    groups = rows.get(GROUP)[first].unique().numel()
    starts = first_observations(rows).values()
    if groups > 1 and all(torch.equal(start, start[:1].expand_as(start)) for start in starts):
        return Finding(
            "groups",
            "warn",
            f"{groups} groups from different initial states begin with one and the same observation: either the "
            "environment has a single start, so that no start is held out for evaluation, or what differs is not in "
            "the observation. Check env.init_state, env.num_states",
        )
    return Finding("groups", "ok", f"{groups} group{'s' * (groups > 1)}, each with one start of its own")


def look_at_actions(chunk: Tensor, is_pad: Tensor, space: spaces.Box) -> Finding:
    """Whether the executed actions lie in the box, and use it.

    Args:
        chunk: ``[M, L, D]``.
        is_pad: ``[M, L]`` bool.
        space: ``Box [L, D]``.
    """
    actions = chunk[~is_pad].double()  # [T, D]
    low, high = (torch.from_numpy(bound[0]).double() for bound in (space.low, space.high))
    if unbounded := (~torch.isfinite(high - low)).nonzero().flatten().tolist():
        text = f"dimension {_join(unbounded)} of the action box has no bounds, so no policy can cover it; give it some"
        return Finding("actions", "fail", f"{text} (gymnasium.wrappers:RescaleAction, ClipAction in env.wrappers)")
    width = (high - low).clamp_min(1e-12)
    place = (actions - low) / width  # 0 and 1 are the ends of the box
    least, most = place.amin(0), place.amax(0)
    outside = ((place < -1e-3) | (place > 1 + 1e-3)).any(-1).double().mean()
    extent = "; ".join(f"[{float(a):g}, {float(b):g}]" for a, b in {*zip(low.tolist(), high.tolist(), strict=True)})
    used = f"actions of [{float(actions.min()):.3g}, {float(actions.max()):.3g}] in a box of {extent}"
    remedy = "give the environment the box of the policy (gymnasium.wrappers:RescaleAction in env.wrappers)"
    if outside > 0.01:
        return Finding("actions", "warn", f"{float(outside):.0%} lie outside of the box: {used}; {remedy}")
    if bool((most - least < NARROW).all()):
        share = float((most - least).max())
        return Finding("actions", "warn", f"they use at most {share:.1%} of the box: {used}; {remedy}")
    at_end = torch.maximum((place < MARGIN).double().mean(0), (place > 1 - MARGIN).double().mean(0))
    if len(at_end) > 1 and int((at_end < STUCK).sum()) <= 1 and bool((at_end >= STUCK).any()):
        return Finding(
            "actions",
            "warn",
            f"nearly all lie at an end of the box: {used}; does the policy come from actions in other units?",
        )
    return Finding("actions", "ok", used)


def look_at_outcomes(rows: TensorDictBase) -> Finding:
    """Whether some episodes succeed and some fail."""
    success, _ = episode_outcomes(rows)
    count = _count(rows)
    if bool(success.all()):
        return Finding(
            "success",
            "warn",
            f"{count}: GRPO learns from groups with both outcomes only. Is success read from the right place "
            "(env.success)? If so, the task is solved: take a harder one, or an earlier policy (sft.target=0.5)",
        )
    if not bool(success.any()):
        return Finding("success", "warn", f"{count}: {HOPELESS}")
    return Finding("success", "ok", count)


def _count(rows: TensorDictBase) -> str:
    success, _ = episode_outcomes(rows)
    return f"{int(success.sum())} of {len(success)} episodes succeeded"


def look_at_head(log_probs: Tensor, is_pad: Tensor, bins: int) -> Finding:
    """Whether the policy's choices are more than chance: a head that was never trained draws almost uniformly.

    Args:
        log_probs: Recorded at sampling, ``[M, L, D]``; minus their mean is near the entropy.
        is_pad: ``[M, L]`` bool.
        bins: A; the mean of a uniform choice is log A.
    """
    nats, chance = -float(log_probs[~is_pad].double().mean()), math.log(bins)
    found = f"{nats:.2f} nats a token, where chance is {chance:.2f}"
    if nats < chance - min(UNIFORM, 0.1 * chance):
        return Finding("head", "ok", found)
    return Finding(
        "head",
        "warn",
        f"the policy chooses almost uniformly ({found}): its head was never trained on these tokens. Train it first "
        "(sft.steps, pcm-rl sft), or take a checkpoint with action tokens; OpenVLA-OFT's official release has a "
        "regression head instead",
    )


HOPELESS = (
    "GRPO learns nothing without a success. Likely causes: a policy that was not trained for this task (policy.init, "
    "the checkpoint and its statistics, more demonstrations or sft.steps), a success that is not read (env.success), "
    "or a horizon too short for the task"
)


def look_at_phases(phase: Tensor) -> Finding:
    """Whether the phase rule tells chunks apart.

    Args:
        phase: ``[M]`` int64, -1 for chunks that were never executed.
    """
    found, count = phase[phase >= 0].unique(return_counts=True)
    shares = ", ".join(
        f"{Phase(p).label if p < len(Phase) else p} {n / max(int(count.sum()), 1):.0%}"
        for p, n in zip(found.tolist(), count.tolist(), strict=True)
    )
    if len(found) > 1:
        return Finding("phases", "ok", shares)
    return Finding(
        "phases",
        "warn",
        f"all chunks are in one phase ({shares}), so that rules which weigh phases draw uniformly; set "
        "env.gripper_index and env.close_above or env.close_below, or give an env.labeller",
    )


def _join(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
