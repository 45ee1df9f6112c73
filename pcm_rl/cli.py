"""The command line: ``pcm-rl train|check|plan|demos|sft|eval|compare|profile|plot|export``."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pcm_rl import __version__
from pcm_rl.config import METHODS, Config, ConfigError, load_config, save_config
from pcm_rl.plan.figures import CARDS, CARDS_SHOWN, MEASURED

_KEYS = "key=value overrides, such as seed=1 selection.budget=8 (see pcm_rl/config/schema.py or a run's config.yaml)"

# wrong use, numbers that became nan, failed runs, a full disk or memory: what the user can mend needs no traceback
_ERRORS = (ConfigError, OSError, FloatingPointError, ImportError, MemoryError, torch.OutOfMemoryError)
_BEFORE_THE_RUN = (ConfigError, FileExistsError, FileNotFoundError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 2 for what the user can mend, in one line; 128 and the number of a signal; 1 for a bug, with its traceback.
    """
    options = _parse(arguments)
    options.command = shlex.join(sys.argv[1:] if arguments is None else arguments)
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # a recipe may name rules, policies and benchmarks in it as module:function
    try:
        _refuse_several_processes(options)
        options.run(options)
    except KeyboardInterrupt as stop:
        if _is_first():
            _tell(f"pcm-rl: {_stopped(stop)}; {_go_on(options)}")
        return int(getattr(stop, "status", 130))
    except _ERRORS as error:
        begun = options.run is _train and not isinstance(error, _BEFORE_THE_RUN) and _is_first()
        then = f"; when this is mended, {_go_on(options)}" if begun else ""
        _tell(f"pcm-rl: {str(error) or type(error).__name__}{then}")
        return 2
    except Exception as error:
        return _explain(error)
    return 0


def _is_first() -> bool:
    """Whether this is the process that saves, and knows how to go on."""
    return os.environ.get("RANK", "0") == "0"


def _tell(text: str) -> None:
    """Print to the error stream, which is gone where the terminal was closed; the exit status stays the same."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _stopped(stop: KeyboardInterrupt) -> str:
    saved = getattr(stop, "saved", None)
    return (str(stop) or "interrupted") + (f", saved after step {saved}" if saved is not None else "")


def _go_on(options: argparse.Namespace) -> str:
    """The command that goes on where this one has stopped."""
    folder, program, where = getattr(options, "run_folder", None), _program(), _where()
    again = getattr(options, "or_resume", False)
    if again or folder is None or not any(folder.glob("checkpoint*")):
        goes_on = again or options.run is _compare
        return f"{'continue' if goes_on else 'start again'} with `{program} {options.command}`{where}"
    overrides = options.overrides if options.resume else []  # the others are in its config.yaml
    return f"continue with `{program} {shlex.join(['train', '--resume', str(folder), *overrides])}`{where}"


def _program() -> str:
    """What has started this process."""
    ranks, nodes = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    machines = f"--nnodes {nodes} " if nodes > 1 else ""
    return f"torchrun {machines}--nproc-per-node {ranks} -m pcm_rl.cli" if nodes * ranks > 1 else "pcm-rl"


def _where() -> str:
    """What of the command ``torchrun`` does not tell its processes."""
    several = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
    return " on every machine, with the other options of torchrun as before" if several else ""


def _explain(error: Exception) -> int:
    """Print the traceback, and whose code it has come from."""
    text = "".join(traceback.format_exception(error))
    _tell(text)
    ours = (str(Path(__file__).parent), sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"))
    places = re.findall(r'File "([^"<]+)", line (\d+)', text)
    foreign = [f"{path}, line {line}" for path, line in places if not path.startswith(ours) and _is_own_code(path)]
    if foreign:
        _tell(f"pcm-rl: {type(error).__name__} in {foreign[-1]}, which is not part of pcm_rl")
        return 2
    _tell(f"pcm-rl: {type(error).__name__}, a bug of pcm_rl: please report it, with the lines above")
    return 1


def _is_own_code(path: str) -> bool:
    """Whether a file outside of this package and of Python is neither an installed package nor what started us."""
    return "site-packages" not in path and Path(path).name not in ("pcm-rl", "__main__.py")


def _refuse_several_processes(options: argparse.Namespace) -> None:
    if options.run is not _train and "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("only `pcm-rl train` runs on several processes; start this command without torchrun")


def _train(options: argparse.Namespace) -> None:
    from pcm_rl.processes.settings import settings_of_first
    from pcm_rl.training.trainer import train

    config, resume = settings_of_first(lambda: _settings(options))
    options.run_folder = config.folder
    train(config, resume=resume)


def _settings(options: argparse.Namespace) -> tuple[Config, bool]:
    """The run, and whether it goes on."""
    from pcm_rl.training.begun import begun_or_new, config_of_run

    if options.resume is not None:
        if options.config is not None or options.or_resume:
            other = "--or-resume" if options.config is None else f"--config {options.config}"
            raise ConfigError(
                f"--resume takes the configuration of {options.resume}; leave {other} out, and give changes as "
                "key=value"
            )
        return config_of_run(options.resume, options.overrides), True
    config = load_config(options.config, options.overrides)
    return begun_or_new(config, options.overrides) if options.or_resume else (config, False)


def _check(options: argparse.Namespace) -> None:
    from pcm_rl.checks.run import check

    check(options.config, options.overrides, as_json=options.json)


def _demos(options: argparse.Namespace) -> None:
    from pcm_rl.rollouts.demonstrations import demonstrations
    from pcm_rl.rollouts.lerobot.export import export_lerobot, ready_to_export
    from pcm_rl.rollouts.statistics import write_statistics

    config = load_config(options.config, options.overrides)
    if config.demos.path is None and options.lerobot is None:
        raise ConfigError("demos.path says where to write the demonstrations; give demos.path=FILE.safetensors")
    written = options.statistics is not None or options.lerobot is not None
    if config.demos.path is not None and Path(config.demos.path).exists() and not written:
        raise FileExistsError(f"{config.demos.path} exists; delete it or give another demos.path")
    if options.lerobot is not None:
        fps = ready_to_export(config, Path(options.lerobot), options.fps)  # before the expert plays
    elif options.fps is not None:
        raise ConfigError("--fps is of a LeRobot data set; give --lerobot FOLDER")
    demos = demonstrations(config)
    if options.statistics is not None:
        print(f"statistics: {write_statistics(demos, options.statistics)}")
    if options.lerobot is not None:
        print(export_lerobot(demos, config, Path(options.lerobot), fps))


def _sft(options: argparse.Namespace) -> None:
    from pcm_rl.support.room import check_room
    from pcm_rl.training.checkpoint import save_policy
    from pcm_rl.training.trainer import Trainer

    config = load_config(options.config, options.overrides)
    path = config.folder / "policy.safetensors"
    if (config.folder / "config.yaml").exists() or path.exists():
        raise FileExistsError(f"{config.folder} holds a run or a policy; give another name=..., or delete it")
    check_room(config.folder)
    trainer = Trainer(config)
    with contextlib.closing(trainer.env):
        trainer.supervised_start()
        trainer.evaluate()
        save_policy(trainer.policy, path, trainer.origin())
        save_config(config, config.folder / "config.yaml")
    print(f"policy: {path} (train from it with policy.init={path})")


def _eval(options: argparse.Namespace) -> None:
    from pcm_rl.evals.protocol import Protocol, evaluate_run

    columns = _named(options.also, "--also")
    protocol = Protocol(options.states, options.episodes, options.greedy, options.films, columns)
    evaluate_run(options.folder, options.overrides, protocol, overwrite=options.overwrite)


def _profile(options: argparse.Namespace) -> None:
    from pcm_rl.reports.console import table_console
    from pcm_rl.reports.run_end import update_cost_table
    from pcm_rl.training.forecast import memory_lines, time_lines
    from pcm_rl.training.trainer import Trainer
    from pcm_rl.training.update_cost import compared_methods, profile_update

    config = load_config(options.config, options.overrides)
    trainer = Trainer(config)
    with contextlib.closing(trainer.env):
        if config.policy.init is None:
            trainer.supervised_start()
        for _ in range(5):
            started = time.perf_counter()
            rows = trainer.collect()
            rollout_s = time.perf_counter() - started
            batch = rows[trainer.grpo.write_advantage(rows)]
            if len(batch):
                break
        else:
            raise ConfigError(
                "no group had both outcomes in 5 batches; give policy.init of a policy between 0 and 100 %"
            )
        memory = memory_lines(trainer.policy, batch)
        trainer.grpo.probe(rows, trainer.policy, trainer.say)  # decides on recomputation, as before the first update
    # the cost of an update does not depend on the advantages
    named_methods = {name: method for name, method in METHODS.items() if method.advantage == "group"}
    costs = profile_update(trainer.policy, batch, trainer.grpo.config, methods=compared_methods(config) | named_methods)
    table_console().print(update_cost_table([cost.as_dict() for cost in costs]))
    print("\n".join([*time_lines(costs, rollout_s, config), *memory]))


def _plan(options: argparse.Namespace) -> None:
    from pcm_rl.plan.run import Request, plan

    request = Request(
        options.config, options.from_run, options.card, options.methods, options.cards, tuple(options.overrides)
    )
    plan(request, as_json=options.json)


def _compare(options: argparse.Namespace) -> None:
    from pcm_rl.compare.plan import Comparison
    from pcm_rl.compare.run import compare

    variants = _named(options.variant, "--variant")
    comparison = Comparison(
        options.config, options.overrides, options.methods, variants, options.budgets, options.seeds
    )
    compare(comparison, jobs=options.jobs, baseline=options.baseline)


def _plot(options: argparse.Namespace) -> None:
    from pcm_rl.reports.page import write_report

    print(f"report: {write_report(Path(options.folder))}")


def _export(options: argparse.Namespace) -> None:
    from pcm_rl.evals.export import export_run
    from pcm_rl.evals.push import check_repository, push_to_hub

    if options.push is not None:
        check_repository(options.push, private=not options.public)
    run, folder, base = options.run_folder, options.folder, options.base_model
    print(f"written: {export_run(run, folder, adapters=options.adapters, base_model=base)}")
    if options.push is not None:
        print(f"pushed: {push_to_hub(folder, options.push, private=not options.public)}")


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


def _named(columns: Sequence[tuple[str, list[str]]], option: str) -> dict[str, list[str]]:
    named = dict(columns)
    if len(named) < len(columns):
        raise ConfigError(f"two {option} have one name; every column needs its own")
    return named


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        last = int(ends[2] or ends[1]) if ends else -1
        if not ends or last < int(ends[1]):
            raise argparse.ArgumentTypeError(f"expected numbers such as 0,1,2 or 0-15, got {text!r}")
        numbers += range(int(ends[1]), last + 1)
    return numbers


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str, *, config: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if config:
            text = "YAML recipe, or one of the package by its name, such as reach; every field has a default"
            sub.add_argument("--config", metavar="FILE", help=text)
        return sub

    sub = command("train", _train, "demonstrations, supervised start, GRPO with chunk selection, report")
    sub.add_argument("--resume", metavar="RUN", help="continue this run folder from its checkpoint")
    sub.add_argument(
        "--or-resume", action="store_true", help="continue the run of this name if it has a checkpoint, else begin it"
    )
    sub.add_argument("overrides", nargs="*", help=_KEYS)
    sub = command("check", _check, "try the machine, and a recipe without training: one line a check, with the remedy")
    sub.add_argument("--json", action="store_true", help="as a JSON list")
    sub.add_argument("overrides", nargs="*", help=_KEYS)
    sub = command("demos", _demos, "record demonstrations of the scripted expert to demos.path")
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
    sub.add_argument("overrides", nargs="*", help=_KEYS)
    for name, run, text in (
        ("sft", _sft, "supervised start only; writes policy.safetensors"),
        ("profile", _profile, "update time and activation memory of every method on one batch"),
    ):
        command(name, run, text).add_argument("overrides", nargs="*", help=_KEYS)
    _add_plan(command)
    _add_eval(command)
    _add_compare(command)
    sub = command("plot", _plot, "write report.html of a run folder again", config=False)
    sub.add_argument("folder", metavar="RUN")
    sub = command("export", _export, "write a run's policy as a checkpoint folder, with a model card", config=False)
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
    sub = command("plan", _plan, "seconds of a step by method and number of cards, what binds, and what would help")
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
    sub = command("eval", _eval, "success of a run's policy, task by task; writes eval.json", config=False)
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
    sub.add_argument("overrides", nargs="*", help=_KEYS)


def _add_compare(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("compare", _compare, "several methods, budgets and seeds, in parallel; raw tables and statistics")
    methods = ["full-valid", "pcm", "random-valid"]
    sub.add_argument("--methods", type=_methods, default=methods, metavar="A,B,...", help="'' for variants only")
    _add_columns(sub, "--variant", "slow-pcm:method=pcm,update.lr=1e-4")
    sub.add_argument(
        "--budgets", type=_numbers, default=[], metavar="8,12,...", help="a run of every method with a budget for each"
    )
    sub.add_argument("--seeds", type=_numbers, default=[0], metavar="0,1,...", help="also 0-15")
    sub.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    sub.add_argument("--baseline", metavar="COLUMN", help="what differences are taken to; default full-valid")
    sub.add_argument("overrides", nargs="*", help=_KEYS)


def _add_columns(command: argparse.ArgumentParser, option: str, example: str) -> None:
    """An option that may be repeated, once for each column."""
    text = f"one more column, with these overrides, such as {example}"
    command.add_argument(
        option, type=_column, action="append", default=[], metavar="NAME:key=value[,key=value]", help=text
    )


if __name__ == "__main__":
    sys.exit(main())
