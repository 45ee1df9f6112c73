"""A check before training: the log-probs recorded at sampling are those that the update computes."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.modules.vla import VLAWrapperBase

from pcm_rl.episodes import IS_PAD, LOG_PROBS, TOKENS

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
    new = policy.get_dist(probe_rows.select(*policy.in_keys, strict=False)).log_prob(probe_rows.get(TOKENS))
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
