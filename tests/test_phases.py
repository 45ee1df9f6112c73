from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_rl import Phase, close_fraction, label_phases

exact = settings(derandomize=True, deadline=None, max_examples=80)
eighths = st.integers(0, 8).map(lambda k: k / 8)


def intervals(held: list[bool]) -> list[tuple[int, int]]:
    """First and last chunk of every maximal run of True."""
    found: list[tuple[int, int]] = []
    for j, closed in enumerate(held):
        if closed and found and found[-1][1] == j - 1:
            found[-1] = (found[-1][0], j)
        elif closed:
            found.append((j, j))
    return found


def reference(
    gf: list[float], valid: list[bool], sustained: float, active: float, begun: float, window: int
) -> list[int]:
    """The rules of E.2, one after the other, for one episode."""
    runs = intervals([ok and f >= sustained for f, ok in zip(gf, valid, strict=True)])
    labels = []
    for j, f in enumerate(gf):
        if not valid[j]:
            labels.append(-1)
        elif f >= active:
            labels.append(0)
        elif f >= begun and any(first - window <= j < first for first, _ in runs):
            labels.append(1)
        elif any(last < j <= last + window for _, last in runs):
            labels.append(2)
        elif any(valid[m] and gf[m] >= active for m in range(j + 1, len(gf))):
            labels.append(3)
        elif runs and j > runs[-1][1]:
            labels.append(4)
        else:
            labels.append(3)
    return labels


@st.composite
def episode_batches(draw: st.DrawFn) -> tuple[list[list[float]], list[list[bool]]]:
    number, chunks = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    # grasps are runs, so that independent draws alone would hardly make the ramps
    run = st.tuples(eighths, st.integers(1, 5)).map(lambda pair: [pair[0]] * pair[1])
    row = st.lists(run, min_size=chunks, max_size=chunks).map(lambda runs: [f for run in runs for f in run][:chunks])
    mask = st.lists(st.booleans() | st.just(True), min_size=chunks, max_size=chunks)
    rows = st.lists(row, min_size=number, max_size=number)
    return draw(rows), draw(st.lists(mask, min_size=number, max_size=number))


@exact
@given(episode_batches(), st.tuples(eighths, eighths, eighths).map(sorted), st.integers(0, 4))
def test_labels_follow_the_rules(
    batch: tuple[list[list[float]], list[list[bool]]], thresholds: list[float], window: int
) -> None:
    fractions, masks = batch
    begun, active, sustained = thresholds
    got = label_phases(
        torch.tensor(fractions, dtype=torch.float64),
        torch.tensor(masks),
        sustained=sustained,
        active=active,
        begun=begun,
        window=window,
    )
    expected = [reference(f, m, sustained, active, begun, window) for f, m in zip(fractions, masks, strict=True)]
    assert got.tolist() == expected


@exact
@given(episode_batches(), st.sampled_from([torch.float32, torch.float64]))
def test_default_thresholds_are_the_papers(
    batch: tuple[list[list[float]], list[list[bool]]], dtype: torch.dtype
) -> None:
    fractions, masks = batch
    got = label_phases(torch.tensor(fractions, dtype=dtype), torch.tensor(masks))
    assert got.dtype == torch.int64
    assert got.tolist() == [reference(f, m, 0.75, 0.5, 0.1, 3) for f, m in zip(fractions, masks, strict=True)]


@pytest.mark.parametrize(
    ("fractions", "labels"),
    [
        pytest.param([0, 0, 0, 0.25, 0.5, 1, 1, 0.25, 0, 0, 0, 0], [3, 3, 3, 1, 0, 0, 0, 2, 2, 2, 4, 4], id="a pick"),
        pytest.param([0, 0.125, 0, 0.25, 0.75, 0], [3, 1, 3, 1, 0, 2], id="pre-grasp needs a begun close"),
        pytest.param([0.25, 0.25, 0.25, 0.25, 1.0], [3, 1, 1, 1, 0], id="three chunks before, not four"),
        pytest.param([1, 0, 0, 0, 0, 0, 1], [0, 2, 2, 2, 3, 3, 0], id="approach to the second grasp"),
        pytest.param([1, 0, 0.25, 0, 1], [0, 2, 1, 2, 0], id="pre-grasp beats release-ramp"),
        pytest.param([1, 0, 0, 0, 0, 0.5, 0], [0, 2, 2, 2, 3, 0, 4], id="an unsustained attempt is still to come"),
        pytest.param([0, 0, 0], [3, 3, 3], id="no grasp"),
        pytest.param([0, 0.5, 0.625, 0, 0], [3, 0, 0, 3, 3], id="only unsustained attempts"),
        pytest.param([1, 1, 1], [0, 0, 0], id="all closed"),
        pytest.param([0.4999, 0.5, 0.7499, 0.75], [1, 0, 0, 0], id="thresholds are inclusive"),
        pytest.param([0.0999, 0.1, 1], [3, 1, 0], id="begun is inclusive"),
        pytest.param([0.25], [3], id="one chunk"),
    ],
)
def test_table(fractions: list[float], labels: list[int]) -> None:
    assert label_phases(torch.tensor(fractions, dtype=torch.float64)).tolist() == labels


def test_invalid_chunks_neither_grip_nor_get_a_label() -> None:
    fraction = torch.tensor([0.0, 0.25, 1.0, torch.nan])
    assert label_phases(fraction, torch.tensor([True, True, False, False])).tolist() == [3, 3, -1, -1]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 1, 4)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    assert label_phases(torch.zeros(shape)).shape == shape


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    fraction = torch.rand(2, 3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = label_phases(fraction)
    for i in range(2):
        for j in range(3):
            assert torch.equal(got[i, j], label_phases(fraction[i, j]))


def test_labelling_leaves_its_input_alone() -> None:
    fraction, valid = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([True, True, False])
    label_phases(fraction, valid)
    assert fraction.tolist() == [0, 1, 0] and valid.tolist() == [True, True, False]


def test_phase_names_and_priorities() -> None:
    assert [p.label for p in Phase] == ["active-grip", "pre-grasp", "release-ramp", "approach", "tail"]
    assert [int(p) for p in Phase] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("thresholds", [(0.5, 0.75, 0.1), (0.75, 0.1, 0.5), (0.75, 0.5, -0.1), (1.1, 0.5, 0.1)])
def test_thresholds_out_of_order(thresholds: tuple[float, float, float]) -> None:
    sustained, active, begun = thresholds
    with pytest.raises(ValueError, match="expected 0 <= begun <= active <= sustained <= 1"):
        label_phases(torch.zeros(3), sustained=sustained, active=active, begun=begun)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_fraction_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        label_phases(torch.tensor([0.0, value]))


def test_label_shapes_and_window() -> None:
    with pytest.raises(ValueError, match=r"valid must be bool \(3,\), got torch.bool \(2,\)"):
        label_phases(torch.zeros(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"close_fraction must have shape \[\.\.\., N\]"):
        label_phases(torch.tensor(0.0))
    with pytest.raises(ValueError, match="window must be at least 0"):
        label_phases(torch.zeros(3), window=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_close_fraction_by_loops(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    gripper = torch.randint(-1, 2, (3, 4, 8), generator=generator).to(dtype)
    valid = torch.rand(3, 4, 8, generator=generator) < 0.7
    valid[0, 0] = False
    got = close_fraction(gripper, valid)
    assert got.dtype == torch.float64
    for i in range(3):
        for k in range(4):
            executed = [float(gripper[i, k, j]) for j in range(8) if valid[i, k, j]]
            closing = sum(command > 0 for command in executed)
            assert got[i, k].item() == (closing / len(executed) if executed else 0.0)


def test_close_above_is_strict() -> None:
    gripper = torch.tensor([[0.2, 0.5, 0.6, 0.9]])
    assert close_fraction(gripper, torch.ones(1, 4, dtype=torch.bool), close_above=0.5).tolist() == [0.5]


def test_close_fraction_ignores_what_was_not_executed() -> None:
    gripper = torch.tensor([[1.0, -1.0, torch.nan, 1.0]])
    assert close_fraction(gripper, torch.tensor([[True, True, False, False]])).tolist() == [0.5]


def test_close_fraction_errors() -> None:
    valid = torch.ones(2, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"valid must be bool \(2, 7\), got torch.bool \(2, 8\)"):
        close_fraction(torch.zeros(2, 7), valid)
    with pytest.raises(ValueError, match=r"\[\.\.\., N, L\]"):
        close_fraction(torch.zeros(8), valid[0])
    with pytest.raises(ValueError, match="valid must be bool"):
        close_fraction(torch.zeros(2, 8), valid.float())
    with pytest.raises(ValueError, match="NaN in executed steps"):
        close_fraction(torch.full((2, 8), torch.nan), valid)
