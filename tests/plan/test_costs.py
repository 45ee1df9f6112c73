"""Seconds of decisions and updates by hand."""

from __future__ import annotations

import pytest

from pcm_rl.config import ConfigError
from pcm_rl.plan.costs import Costs, costs_of
from pcm_rl.plan.figures import CARDS, Card, Network


def test_an_update_is_proportional_to_its_chunks_and_is_shared_by_cards():
    costs = Costs(update_row_s=0.5, micro_rows=16)
    one = costs.update_s(64, minibatches=4)
    assert one == 32.0 == costs.update_s(32, minibatches=4, epochs=2)
    assert costs.update_s(192, minibatches=4) == 3 * one
    assert costs.update_s(64, minibatches=4, cards=2) == one / 2
    assert costs.update_s(0, minibatches=4) == 0.0


def test_steps_and_micro_batches_by_hand():
    costs = Costs(update_row_s=1.0, update_call_s=1.5, update_step_s=0.25, micro_rows=2)
    # minibatches of 3, 3, 2, 2 chunks: two of 2 + 1 (2 + 1.5 s), two of 2
    assert costs.update_s(10, minibatches=4) == 2 * (0.25 + 3.5) + 2 * (0.25 + 2.0)
    # on two cards 2, 2, 1, 1
    assert costs.update_s(10, minibatches=4, cards=2) == 2 * (0.25 + 2.0) + 2 * (0.25 + 1.5)
    assert costs.update_s(2, minibatches=4) == 2 * (0.25 + 1.5)  # two minibatches are empty


def test_a_decision_is_a_call_and_its_rows_but_reads_all_weights():
    costs = Costs(decision_call_s=1.0, decision_row_s=0.25, decision_least_s=1.0)
    assert [costs.decision_s(rows) for rows in (1, 4, 8)] == [2.0, 2.0, 3.0]


def test_twice_as_fast_is_half_of_each_part_and_nothing_else():
    costs = costs_of(Card(), Network())
    assert costs.faster(decisions=2).decision_s(5) == costs.decision_s(5) / 2
    assert costs.faster(update=2).update_s(99, minibatches=4) == pytest.approx(costs.update_s(99, minibatches=4) / 2)
    assert costs.faster(update=2).decision_s(5) == costs.decision_s(5)
    assert costs.faster() == costs


def test_seconds_follow_from_operations_peak_and_share():
    card = Card(peak_tflops=100.0, update_share=0.5, decision_share=0.25, decision_call_s=0.0, update_call_s=0.0)
    costs = costs_of(card, Network(decision_tflop=5.0, update_tflop=10.0))
    assert (costs.decision_row_s, costs.update_row_s) == (0.2, 0.2)
    slow = costs_of(Card(bandwidth_gb=10.0), Network(weights_gb=20.0))
    assert (slow.decision_least_s, slow.update_call_s) == (2.0, 4.0)


def test_what_is_kept_follows_from_the_memory():
    network = Network(weights_gb=10, training_gb=2, kept_gb=2, recomputed_gb=0.5, micro_rows=16)
    cases = [
        (44, None, False, 16),
        (43, None, True, 16),
        (14, None, True, 4),
        (20, False, False, 4),
        (99, True, True, 16),
    ]
    for memory, recompute, recomputes, rows in cases:
        costs = costs_of(Card(memory_gb=memory), network, recompute=recompute)
        assert (costs.recomputes, costs.micro_rows) == (recomputes, rows), memory
    ratio = network.recomputed_tflop / network.update_tflop
    kept, again = (costs_of(Card(memory_gb=memory), network).update_row_s for memory in (44, 43))
    assert again == pytest.approx(ratio * kept)
    for memory, recompute in ((12.4, None), (13.9, False)):
        with pytest.raises(ConfigError, match=f"card.memory_gb={memory}"):
            costs_of(Card(memory_gb=memory), network, recompute=recompute)


def test_every_card_holds_the_7b():
    assert [name for name in CARDS if costs_of(CARDS[name], Network()).recomputes] == ["rtx4090"]
