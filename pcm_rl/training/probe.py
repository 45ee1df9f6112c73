"""Checks before training: what the first episodes show, and that recorded log-probs are those of the update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from tensordict import TensorDictBase
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.config import Config, ConfigError
from pcm_rl.episodes import INSTRUCTION, IS_PAD, LOG_PROBS, PHASE
from pcm_rl.policies.family import Acts, PadsPrompts, Policy, bins_of, log_probs_of
from pcm_rl.policies.observed import instructions
from pcm_rl.processes.ranks import Ranks
from pcm_rl.rollouts.first_look import Finding, first_look, look_at_phases

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-2}  # bfloat16 rounds differently at other batch sizes


class ProbeError(FloatingPointError):
    """The policy lacks a property that training needs."""


@torch.no_grad()
def check_log_probs(policy: VLAWrapperBase, rows: TensorDictBase, *, probes: int = 32) -> float:
    """Compute the log-probs of some recorded rows again, in another batch than at sampling.

    Args:
        policy: The policy that acted.
        rows: ``[M]`` recorded rows.
        probes: Number of rows to check, evenly spaced over the batch.

    Returns:
        Mean distance of the ratio of new to recorded probability from 1, over executed tokens.

    Raises:
        ProbeError: If it is above the tolerance of the policy's type: 1e-3, in bfloat16 1e-2.
    """
    index = torch.linspace(0, len(rows) - 1, min(probes, len(rows))).round().long()
    probe_rows = rows[index].to(next(policy.parameters()).device)
    # with the weights that acted: merged ones are rounded, and kl_acting says by how much
    with policy.acting() if isinstance(policy, Acts) else contextlib.nullcontext():
        new = log_probs_of(policy, probe_rows)
    executed = ~probe_rows.get(IS_PAD)
    ratio = (new - probe_rows.get(LOG_PROBS)).exp()[executed]
    distance = float((ratio - 1.0).abs().mean())
    tolerance = TOLERANCE.get(getattr(policy, "dtype", torch.float32), TOLERANCE[torch.float32])
    if not distance <= tolerance:
        raise ProbeError(
            f"expected the update's log-probs to be those recorded at sampling, got probabilities that differ by "
            f"{distance:.2g} on average, more than {tolerance}: a ratio that is not 1 before the first step makes "
            "the clipping wrong. Is the temperature, the image processing or the dtype another one in the update?"
        )
    return distance


@torch.no_grad()
def company_matters(policy: VLAWrapperBase, rows: TensorDictBase, number: int) -> float:
    """Compute recorded log-probs again among other rows, in a forward pass of the shape that they were decided in.

    On a CPU with one thread we found no difference. What a GPU's libraries do depends on the card and the shape.

    Args:
        policy: The policy that acted, with the same weights.
        rows: ``[M]`` recorded rows.
        number: Rows of every decision, ``rollouts.decisions``.

    Returns:
        The largest change of a log-prob; 0.0 where none changed by a bit.
    """
    index = torch.arange(len(rows))
    if INSTRUCTION in rows.keys() and isinstance(policy, PadsPrompts):
        lengths = torch.tensor([policy.padded_length(text) for text in instructions(rows)])
        index = index[lengths == lengths[0]]
    index = index[torch.linspace(len(index) - 1, 0, number).round().long()]  # backwards, from all episodes
    again = rows[index].to(next(policy.parameters()).device)
    with contextlib.ExitStack() as stack:
        if isinstance(policy, Acts):
            stack.enter_context(policy.acting())
        if isinstance(policy, PadsPrompts):
            stack.enter_context(policy.padded())
        new = log_probs_of(policy, again)
    return float((new - again.get(LOG_PROBS)).abs().max())


def heed_first_look(
    rows: TensorDictBase,
    env: VectorEnv,
    policy: Policy,
    config: Config,
    ranks: Ranks,
    say: Callable[[str], None],
) -> None:
    """Look at the first episodes of a run: refuse what cannot be right, say what may be useless.

    Args:
        rows: ``[M]`` rows that this process recorded, with phases.
        env: Where they were played.
        policy: Which played them.
        config: The run, its slots as a number.
        ranks: The processes; all heed the findings of all.
        say: Called with each warning.

    Raises:
        ConfigError: The first finding that fails; see :mod:`pcm_rl.rollouts.first_look`.
    """
    space = env.single_action_space
    assert isinstance(space, spaces.Box)
    mine = []
    if len(rows):  # the groups of this process may all have been dropped
        bins = bins_of(policy)
        found = first_look(rows, space, config.env.slots, bins=bins, taught=config.begins_trained)
        mine = [finding.as_dict() for finding in found]
        if config.selection.rule.by_phase:
            mine.append(look_at_phases(rows.get(PHASE)).as_dict())
    everyones = [Finding(**found) for findings in ranks.gather_json(mine) for found in findings]
    for finding in everyones:
        if finding.level == "fail":
            raise ConfigError(f"{finding.name}: {finding.text}")
    for finding in dict.fromkeys(everyones):
        if finding.level == "warn":
            say(f"first look at {finding.name}: {finding.text}")
