from __future__ import annotations

import pytest
import torch

from pcm_rl.training.probe import ProbeError, check_log_probs, company_matters

TEXTS = ["lift it", "put the bowl on the plate", "go", "lift it", "open the top drawer"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_rows_pass_and_another_temperature_does_not(make_openvla, record_openvla, dtype):
    policy = make_openvla(dtype=dtype)
    rows = record_openvla(policy, TEXTS)
    assert check_log_probs(policy, rows) <= {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    policy.temperature *= 1.5
    with pytest.raises(ProbeError, match="update's log-probs to be those recorded at sampling"):
        check_log_probs(policy, rows)


def test_distance_by_hand(policy, make_batch):
    rows = make_batch(policy, [4, 3], [1, 0], [0, 0])
    assert check_log_probs(policy, rows) <= 1e-12
    recorded = rows["vla_action", "log_probs"].clone()
    rows["vla_action", "log_probs"] = recorded - torch.tensor(1.0005, dtype=torch.float64).log()
    assert check_log_probs(policy, rows) == pytest.approx(5e-4, rel=1e-6)
    rows["vla_action", "log_probs"] = recorded - torch.tensor(1.5, dtype=torch.float64).log()
    with pytest.raises(ProbeError, match=r"differ by 0.5 on average, more than 0.001"):
        check_log_probs(policy, rows)


def test_only_executed_tokens_of_the_probed_rows_are_looked_at(policy, make_batch):
    rows = make_batch(policy, [5, 4], [1, 0], [0, 0])
    pad = rows["action_is_pad"]
    assert pad.any()
    rows["vla_action", "log_probs"][pad] = torch.nan
    assert check_log_probs(policy, rows) <= 1e-12
    rows["vla_action", "log_probs"][4, 0] += 5.0  # probes 0, 3 (2.67), 5 (5.33) and 8 of nine rows
    assert check_log_probs(policy, rows, probes=4) <= 1e-12
    with pytest.raises(ProbeError):
        check_log_probs(policy, rows, probes=9)


def test_nan_is_not_passed(policy, make_batch):
    rows = make_batch(policy, [5, 4], [1, 0], [0, 0])
    rows["vla_action", "log_probs"][0, 0] = torch.nan
    with pytest.raises(ProbeError, match="nan"):
        check_log_probs(policy, rows)


@pytest.mark.parametrize("texts", [TEXTS, [TEXTS[0]] * 5])
def test_whether_a_row_changes_among_others(make_openvla, record_openvla, texts):
    policy = make_openvla(dtype=torch.bfloat16)
    rows = torch.cat([_decided(policy, record_openvla, texts, place) for place in range(5)])
    assert company_matters(policy, rows, 5) == 0.0
    rows["vla_action", "log_probs"][0, 0] += 0.125
    assert company_matters(policy, rows, 5) == 0.125


def _decided(policy, record, texts, place):
    """The row of ``texts[place]`` out of a batch of five of its padded length."""
    with policy.padded():
        return record(policy, [texts[place]] * 5, seed=place)[place : place + 1]
