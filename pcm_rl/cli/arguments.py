"""The arguments of every command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence

from pcm_rl import __version__
from pcm_rl.cli import commands
from pcm_rl.config import METHODS
from pcm_rl.plan.figures import CARDS, CARDS_SHOWN, MEASURED

Command = Callable[[argparse.Namespace], None]
KEYS = "key=value overrides, such as seed=1 selection.budget=8 (see pcm_rl/config/schema.py or a run's config.yaml)"


def _methods(text: str) -> list[str]:
    names = text.split(",") if text else []
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    return names


def _column(text: str) -> tuple[str, list[str]]:
    name, _, overrides = text.partition(":")
    if not re.fullmatch(r"\w[\w.-]*", name) or "=" not in overrides:
        raise argparse.ArgumentTypeError(f"expected NAME:key=value[,key=value], got {text!r}")
    return name, re.split(r",(?=[\w.]+=)", overrides)  # values may hold commas, such as [0,1]


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        last = int(ends[2] or ends[1]) if ends else -1
        if not ends or last < int(ends[1]):
            raise argparse.ArgumentTypeError(f"expected numbers such as 0,1,2 or 0-15, got {text!r}")
        numbers += range(int(ends[1]), last + 1)
    return numbers


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Also finds overrides after options, which argparse does not accept there."""
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    wrong = [item for item in overrides if item.startswith("-") or "=" not in item or not hasattr(options, "overrides")]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if overrides:
        options.overrides = [*options.overrides, *overrides]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "pcm-rl", description="GRPO for action-chunk policies that backpropagates only the chunks that matter."
    )
    parser.add_argument("--version", action="version", version=f"pcm_rl {__version__}")
    known = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command, *, config: bool = True) -> argparse.ArgumentParser:
        text = run.__doc__[0].lower() + run.__doc__[1:].rstrip(".") if run.__doc__ else name
        sub = known.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if config:
            text = "YAML recipe, or one of the package by its name, such as reach; every field has a default"
            sub.add_argument("--config", metavar="FILE", help=text)
        return sub

    sub = command("train", commands.train_command)
    sub.add_argument("--resume", metavar="RUN", help="continue this run folder from its checkpoint")
    sub.add_argument(
        "--or-resume", action="store_true", help="continue the run of this name if it has a checkpoint, else begin it"
    )
    sub.add_argument("overrides", nargs="*", help=KEYS)
    sub = command(
        "check",
        commands.check_command,
    )
    sub.add_argument("--json", action="store_true", help="as a JSON list")
    sub.add_argument("overrides", nargs="*", help=KEYS)
    sub = command("demos", commands.demos_command)
    sub.add_argument(
        "--statistics", metavar="FILE",
        help="also write mean and deviation of their states and actions, such as policy.pi0.statistics reads; "
        "demonstrations that exist are read",
    )  # fmt: skip
    sub.add_argument(
        "--lerobot", metavar="FOLDER",
        help="also write them as a LeRobot data set, new or empty; demonstrations that exist are read",
    )  # fmt: skip
    sub.add_argument("--fps", type=float, help="its steps a second, where the environment does not tell them")
    sub.add_argument("overrides", nargs="*", help=KEYS)
    for name, run in (("sft", commands.sft_command), ("profile", commands.profile_command)):
        command(name, run).add_argument("overrides", nargs="*", help=KEYS)
    _add_plan(command)
    _add_eval(command)
    _add_compare(command)
    sub = command("plot", commands.plot_command, config=False)
    sub.add_argument("folder", metavar="RUN")
    sub = command(
        "export",
        commands.export_command,
        config=False,
    )
    sub.add_argument("run_folder", metavar="RUN")
    sub.add_argument("folder", metavar="FOLDER", help="new or empty")
    sub.add_argument("--adapters", action="store_true", help="only the adapters, as peft writes them")
    sub.add_argument("--base-model", metavar="OWNER/NAME", help="name of the base checkpoint on the hub, for the card")
    sub.add_argument(
        "--push", metavar="OWNER/NAME",
        help="also upload the folder to the Hugging Face hub, as private; in an existing repository files of the same "
        "names are replaced in one commit and others stay; one whose README.md or weights are others' is refused",
    )  # fmt: skip
    sub.add_argument("--public", action="store_true", help="upload it for everyone")
    return parser


def _add_plan(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "plan",
        commands.plan_command,
    )
    sub.add_argument("--from", dest="from_run", metavar="RUN", help="take the seconds that this run has measured")
    sub.add_argument("--card", choices=CARDS, help=f"whose peak, memory and bandwidth count; default {MEASURED}")
    sub.add_argument(
        "--methods", type=lambda text: text.split(",") if text else [], metavar="A,B:4,...",
        help="beside full-valid and the recipe's own; the number is a budget",
    )  # fmt: skip
    sub.add_argument("--cards", type=_numbers, default=CARDS_SHOWN, metavar="1,2,...", help="numbers of cards")
    sub.add_argument("--json", action="store_true", help="as JSON")
    text = "figures such as simulators.chunk_s=0.1 card.peak_tflops=400 (see docs/plan.md), and overrides of the recipe"
    sub.add_argument("overrides", nargs="*", help=text)


def _add_eval(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("eval", commands.eval_command, config=False)
    sub.add_argument(
        "--overwrite", action="store_true", help="replace eval.json also where it holds another evaluation"
    )
    sub.add_argument("folder", metavar="RUN")
    sub.add_argument(
        "--states", choices=("held-out", "all"), default="held-out", help="initial states of each task to start from"
    )
    sub.add_argument("--episodes", type=int, metavar="N", help="rollouts; default: one from each initial state")
    sub.add_argument(
        "--greedy",
        action="store_true",
        help="the most likely tokens, or no noise while denoising",
    )
    sub.add_argument("--films", action="store_true", help="mp4 of the first success and failure of each task")
    _add_columns(sub, "--also", "swap:env.kwargs.suite=libero_object_swap")
    sub.add_argument("overrides", nargs="*", help=KEYS)


def _add_compare(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "compare",
        commands.compare_command,
    )
    methods = ["full-valid", "pcm", "random-valid"]
    sub.add_argument("--methods", type=_methods, default=methods, metavar="A,B,...", help="'' for variants only")
    _add_columns(sub, "--variant", "slow-pcm:method=pcm,update.lr=1e-4")
    sub.add_argument(
        "--budgets", type=_numbers, default=[], metavar="8,12,...", help="a run of every method with a budget for each"
    )
    sub.add_argument("--seeds", type=_numbers, default=[0], metavar="0,1,...", help="also 0-15")
    sub.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    sub.add_argument("--baseline", metavar="COLUMN", help="what differences are taken to; default full-valid")
    sub.add_argument("overrides", nargs="*", help=KEYS)


def _add_columns(command: argparse.ArgumentParser, option: str, example: str) -> None:
    """An option that may be repeated, once for each column."""
    text = f"one more column, with these overrides, such as {example}"
    command.add_argument(
        option, type=_column, action="append", default=[], metavar="NAME:key=value[,key=value]", help=text
    )
