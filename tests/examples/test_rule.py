"""The rule of examples/extending/rule: recorded surprise."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from pcm_rl.algos import PCMSampler

EXTENDING = Path(__file__).parents[2] / "examples" / "extending"


@pytest.mark.slow
def test_it_trains_from_its_own_folder(tmp_path, train_there):
    small = [
        "steps=2",
        "groups=4",
        "eval_episodes=8",
        "eval_every=0",
        "record=false",
        "sft.steps=250",
        "demos.episodes=12",
    ]
    run = train_there("rule", tmp_path, *small)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    for row in rows:
        if row["chunks_kept"]:
            assert float(row["chunks_kept"]) <= 12 * 10 * int(row["groups_mixed"])


def test_it_keeps_the_least_likely_chunks_of_each_trajectory(policy, make_batch, monkeypatch):
    monkeypatch.syspath_prepend(str(EXTENDING / "rule"))
    batch = make_batch(policy, [5, 2, 7, 3], [1, 0, 1, 0], [0, 0, 1, 1])
    kept = PCMSampler(2, selection="surprise:surprise")(batch)
    for episode in range(4):
        rows = batch[batch["episode_id"] == episode]
        executed = ~rows["action_is_pad"]
        mean = torch.stack(
            [row["vla_action", "log_probs"][steps].sum(-1).mean() for row, steps in zip(rows, executed, strict=True)]
        )
        expected = sorted(mean.argsort()[:2].tolist())
        assert sorted(kept["chunk_id"][kept["episode_id"] == episode].tolist()) == expected
