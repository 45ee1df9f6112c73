import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from safetensors.numpy import save_file

from pcm_rl.phases import Phase
from pcm_rl.reports import figures as report_figures
from pcm_rl.reports.colors import PHASE_COLORS
from pcm_rl.reports.columns import EVALUATION, METRICS, headers
from pcm_rl.reports.numbers import amount, duration, percent
from pcm_rl.reports.page import write_report

LABELS = [phase.label for phase in Phase]
COLUMNS = headers(METRICS)
CARDS = {
    "headline", "learning-curve", "time-split", "score", "keep-prob", "candidates", "kept", "budget-curve",
    "update-cost", "rollout-success", "rollout-failure", "health", "notes", "configuration", "metrics",
}  # fmt: skip


def row(step, *, mixed=True):
    values = {name: "" for name in COLUMNS}
    values |= {"step": step, "success": 0.1 * (step % 10), "trajectories": 8, "groups": 2, "groups_mixed": 2 * mixed}
    values |= {"rollout_s": 3.0, "select_s": 0.5, "update_s": 6.0 * mixed, "step_s": 4.0 + 6.0 * mixed}
    if mixed:
        for name in ("loss", "entropy", "clip_fraction", "kl_approx", "max_ratio", "grad_norm"):
            values[name] = 0.5
        values |= {"chunks_valid": 100, "chunks_kept": 40, "kept_fraction": 0.4}
        for order, label in enumerate(LABELS):
            values |= {f"score/{label}": 2.0 - 0.3 * order, f"keep_prob/{label}": 1 - 0.2 * order}
            values |= {f"candidates/{label}": 5, f"kept/{label}": 2}
        values["score/tail"] = ""
    return values


def write_csv(path, rows, columns=COLUMNS):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_run(path, steps=12, instruction="pick up the cube"):
    (path / "recordings").mkdir(parents=True)
    write_csv(path / "metrics.csv", [row(step, mixed=step % 4 != 0) for step in range(1, steps + 1)])
    evaluation = [
        {"step": step, "success": value, "low": value - 0.1, "high": value + 0.05, "successes": 3, "episodes": 20}
        for step, value in ((0, 0.2), (6, 0.5), (12, 0.9))
    ]
    write_csv(path / "evaluation.csv", evaluation, headers(EVALUATION))
    (path / "config.yaml").write_text(
        "env:\n  id: pcm_rl/PickPlace-v0\nselection: {name: pcm, budget: 12}\nseed: 7\nsteps: 12\ngroups: 2\n"
        "group_size: 4\nsecret_sauce: ${oc.env:NOT_SET_ANYWHERE}\n"
    )
    summary = {
        "before": {"success": 0.2, "low": 0.1, "high": 0.3, "episodes": 50},
        "after": {"success": 0.934, "low": 0.85, "high": 0.97, "episodes": 50},
        "seconds": 7500.0,
        "init_states": {"train": "0-39", "evaluation": "40-49"},
        "hardware": "one test machine",
        "profile": [
            {"method": "pcm", "rows": 12, "update_s": 2.0, "activation_bytes": 4_100_000_000},
            {"method": "full-padded", "rows": 64, "update_s": 10.0, "activation_bytes": 10_250_000_000},
        ],
    }
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "budget.json").write_text(json.dumps({"curve": [0.4, 0.7, 0.9, 1.0], "knee": 2, "budget": 12}))
    for name in ("success", "failure"):
        tensors = {"frames": np.full((6, 16, 16, 3), 90, np.uint8), "phase": np.array([3, 1, 0, 2, 4, -1])}
        meta = {"success": "true", "init_state": "41", "instruction": instruction, "frame_step": "2"}
        save_file(tensors, path / "recordings" / f"{name}.safetensors", metadata=meta)
    return path


class Structure(HTMLParser):
    """Collects ids and checks that every element that is opened is closed, in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self):
        super().__init__()
        self.ids, self.open, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(page):
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    assert len(set(structure.ids)) == len(structure.ids)
    assert set(structure.ids) >= CARDS
    assert all(link.startswith(("#", "data:")) for link in structure.links)
    assert "http:" not in page and "https:" not in page and "url(" not in page.replace("url(#", "")
    return structure


def report(path):
    target = write_report(path)
    assert target == path / "report.html"
    page = target.read_text(encoding="utf-8")
    parse(page)
    assert not re.search(r"\bnan\b|\binf\b", page)
    return page


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return report(write_run(tmp_path_factory.mktemp("full") / "run"))


def test_a_full_run_has_every_card_and_nothing_missing(full):
    assert 'class="missing"' not in full
    assert full.count("data:image/webp;base64,") == 2
    for color in PHASE_COLORS.values():
        assert color in full


def test_headline(full):
    for text in ("20 %", "93.4 %", "85 % to 97 %", "50 episodes", "+73.4 points", "2 h 05 min", "40 % of 900"):
        assert text in full
    assert "one test machine" in full and "12" in full
    assert "intervals overlap" not in full


def test_time_split_and_ceiling(full):
    # nine mixed steps of 3 + 0.5 + 6 (+ 0.5 other), three of 3 + 0.5 + 0 (+ 0.5 other)
    assert "update 52.9 %" in full and "rollout 35.3 %" in full and "other 5.9 %" in full
    assert f"{1 / (1 - 54 / 102):.2f}\N{MULTIPLICATION SIGN}" in full


def test_profile_ratios_are_against_the_first_method(full):
    assert "5.00\N{MULTIPLICATION SIGN} pcm" in full and "2.50\N{MULTIPLICATION SIGN} pcm" in full
    assert "4.1 GB" in full


def test_every_metric_is_explained_and_every_baseline_named(full):
    for name, *_ in METRICS:
        assert f"<code>{name.replace('<', '&lt;').replace('>', '&gt;')}</code>" in full
    for text in ("full-padded", "full-valid", "random-valid", "top-phase", "biased", "0-39", "40-49"):
        assert text in full


def test_the_cost_of_another_method_stands_first_if_it_was_the_runs(tmp_path):
    write_csv(tmp_path / "metrics.csv", [])
    names = ("mine:rule<1>", "full-valid")
    profile = [{"method": name, "rows": 5, "update_s": 1.0 + i, "activation_bytes": 8} for i, name in enumerate(names)]
    (tmp_path / "summary.json").write_text(json.dumps({"profile": profile}))
    page = report(tmp_path)
    assert "2.00\N{MULTIPLICATION SIGN} mine:rule&lt;1&gt;" in page and 'class="bar first"' in page
    assert "\N{MULTIPLICATION SIGN} pcm" not in page


def test_a_metric_of_ones_own_is_listed_with_its_last_value(tmp_path):
    write_csv(tmp_path / "metrics.csv", [{**row(1), "novelty": 0.25}], [*COLUMNS, "novelty"])
    page = report(tmp_path)
    assert "<code>novelty</code>" in page and "logged by this run only" in page and "<td>0.25</td>" in page


def test_an_interpolation_in_the_configuration_is_shown_as_written(full):
    assert "${oc.env:NOT_SET_ANYWHERE}" in full


def test_the_same_run_gives_the_same_page(tmp_path, full):
    assert report(write_run(tmp_path / "run")) == full
    assert not (tmp_path / "run" / "report.html.partial").exists()


@pytest.mark.parametrize("mixed", [True, False])
def test_a_single_step_and_no_other_file(tmp_path, mixed):
    write_csv(tmp_path / "metrics.csv", [row(1, mixed=mixed)])
    page = report(tmp_path)
    for name in ("config.yaml", "evaluation.csv", "summary.json", "budget.json", "recordings/success.safetensors"):
        assert f"{name} is missing" in page
    assert ("nothing to compare" in page) is not mixed


@pytest.mark.parametrize("text", ["", "step,success\n", "step,success\n1", "nonsense\n\n,,\n", "step,success\n1,inf\n"])
def test_a_barely_written_table(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    report(tmp_path)


def test_broken_files_are_named_and_do_no_harm(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("summary.json", "budget.json", "config.yaml", "recordings/success.safetensors"):
        (run / name).write_text("{half: [")
    save_file({"phase": np.zeros(2, int)}, run / "recordings" / "failure.safetensors")
    page = report(run)
    for name in ("config.yaml", "summary.json", "budget.json", "recordings/success.safetensors"):
        assert f"{name} cannot be read" in page
    assert "recordings/failure.safetensors cannot be read" in page
    assert "after step 12" in page  # from evaluation.csv


@pytest.mark.parametrize("value", [None, [], [1], {}, {"curve": None}, {"curve": [None, 1]}, "text", 3])
def test_json_of_an_unexpected_form(tmp_path, value):
    write_csv(tmp_path / "metrics.csv", [])  # without figures it is quick
    (tmp_path / "budget.json").write_text(json.dumps(value))
    (tmp_path / "summary.json").write_text(
        json.dumps({"before": value, "after": value, "seconds": value, "init_states": value, "profile": value})
    )
    report(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"profile": [value, {"method": value, "update_s": value}]}))
    report(tmp_path)


def test_overlapping_intervals_and_shared_initial_states_are_said(tmp_path):
    write_csv(tmp_path / "metrics.csv", [])
    side = {"success": 0.5, "low": 0.4, "high": 0.6, "episodes": 10}
    states = {"train": "0-49", "evaluation": "0-49"}
    (tmp_path / "summary.json").write_text(json.dumps({"before": side, "after": side, "init_states": states}))
    page = report(tmp_path)
    assert "intervals overlap" in page and "They are the same" in page
    worse = {"success": 0.1, "low": 0.0, "high": 0.2, "episodes": 10}
    (tmp_path / "summary.json").write_text(json.dumps({"before": side, "after": worse}))
    page = report(tmp_path)
    assert "-40.0 points" in page and "intervals overlap" not in page


def test_text_is_escaped(tmp_path):
    evil = '<script>alert("1")</script>'
    run = write_run(tmp_path / "run", instruction=evil)
    (run / "config.yaml").write_text(f"env:\n  id: '{evil}'\nselection: {{name: '$title {evil}'}}\n")
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"hardware": evil, "init_states": {"train": evil, "evaluation": "{split}"}}
    summary["profile"][1]["method"] = evil
    (run / "summary.json").write_text(json.dumps(summary))
    page = report(run)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_repeated_step_counts_once_and_long_runs_are_thinned(tmp_path):
    write_csv(tmp_path / "metrics.csv", [row(step) for step in [*range(1, 1001), 1000]])
    page = report(tmp_path)
    assert "40 % of 100,000" in page
    assert len(page) < 1_500_000


def test_a_folder_without_metrics(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv does not exist"):
        write_report(tmp_path)


def test_trailing_mean_passes_over_nan():
    values = np.array([np.nan, 1.0, 3.0, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(report_figures.trailing_mean(values, 2), [np.nan, 1, 2, 3, np.nan, np.nan])
    assert report_figures.trailing_mean(np.zeros(0), 3).size == 0


def test_numbers_in_words():
    assert [percent(0.5), percent(0.934), percent(1.0), percent(np.nan)] == ["50 %", "93.4 %", "100 %", "\N{EN DASH}"]
    assert [duration(59.94), duration(600), duration(7500)] == ["59.9 s", "10 min", "2 h 05 min"]
    assert [amount(512), amount(4.1e9)] == ["512 B", "4.1 GB"]
