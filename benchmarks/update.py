"""Update time and activation memory of full-padded, full-valid, random-valid and pcm on one batch.

    python benchmarks/update.py [--network mlp|transformer] [--device cpu|cuda]    writes results/update-*.csv

Two batches: ``all-64`` has 64 executed chunks in every trajectory (5120 rows against 960: the ceiling is 5.33);
``mixed`` has successes that stop after 18 chunks, as on LIBERO-Object, beside failures of 64. Each in two ways: one
forward a minibatch (a quarter of the rows, so that memory follows the rows), and micro-batches of 240 rows for all.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from common import CHUNKS, TRAJECTORIES, synthetic_batch, write_csv

from pcm_rl.config import METHODS, Config, UpdateConfig
from pcm_rl.policies import StateTokenPolicy
from pcm_rl.training.update_cost import UpdateCost, profile_update

COMPARED = {name: METHODS[name] for name in ("pcm", "random-valid", "full-valid", "full-padded")}


def ratios(cost: UpdateCost, pcm: UpdateCost) -> dict[str, float]:
    return {
        "rows_over_pcm": round(cost.rows / pcm.rows, 2),
        "time_over_pcm": round(cost.update_s / pcm.update_s, 2),
        "activations_over_pcm": round(cost.activation_bytes / pcm.activation_bytes, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mlp", choices=["mlp", "transformer"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    width = 256 if options.network == "mlp" else 128
    policy = StateTokenPolicy(26, network=options.network, width=width).to(options.device)
    every = torch.full((TRAJECTORIES,), CHUNKS)
    stopped = torch.where(torch.arange(TRAJECTORIES) % 2 == 0, 18, CHUNKS)
    rows = []
    for name, lengths in (("all-64", every), ("mixed", stopped)):
        batch = synthetic_batch(lengths)
        for micro_rows in (None, 240):
            config = dataclasses.replace(Config(), update=UpdateConfig(minibatches=4, micro_rows=micro_rows))
            costs = profile_update(policy, batch, config, methods=COMPARED, repeats=options.repeats)
            expected = int(lengths.clamp_max(config.selection.budget).sum())
            assert costs[0].rows == costs[1].rows == expected, "backward rows must be sum_i min(B, N_i)"
            assert costs[2].rows == int(lengths.sum()) and costs[3].rows == TRAJECTORIES * CHUNKS
            for cost in costs:
                setting = {"batch": name, "network": options.network, "device": options.device}
                rows.append(
                    {**setting, "micro_rows": micro_rows or "minibatch", **cost.as_dict(), **ratios(cost, costs[0])}
                )
    write_csv(f"update-{options.network}-{options.device}", rows)


if __name__ == "__main__":
    main()
