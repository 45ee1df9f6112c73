"""What each command does: it hands its arguments to the rooms."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from pcm_rl.config import METHODS, Config, ConfigError, load_config, save_config


def train_command(options: argparse.Namespace) -> None:
    """Demonstrations, supervised start, GRPO with chunk selection, report."""
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


def check_command(options: argparse.Namespace) -> None:
    """Try the machine, and a recipe without training: one line a check, with the remedy."""
    from pcm_rl.checks.run import check

    check(options.config, options.overrides, as_json=options.json)


def demos_command(options: argparse.Namespace) -> None:
    """Record demonstrations of the scripted expert to demos.path."""
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


def sft_command(options: argparse.Namespace) -> None:
    """Supervised start only; writes policy.safetensors."""
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


def eval_command(options: argparse.Namespace) -> None:
    """Success of a run's policy, task by task; writes eval.json."""
    from pcm_rl.evals.protocol import Protocol, evaluate_run

    columns = _named(options.also, "--also")
    protocol = Protocol(options.states, options.episodes, options.greedy, options.films, columns)
    evaluate_run(options.folder, options.overrides, protocol, overwrite=options.overwrite)


def profile_command(options: argparse.Namespace) -> None:
    """Update time and activation memory of every method on one batch."""
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


def plan_command(options: argparse.Namespace) -> None:
    """Seconds of a step by method and number of cards, what binds, and what would help."""
    from pcm_rl.plan.run import Request, plan

    request = Request(
        options.config, options.from_run, options.card, options.methods, options.cards, tuple(options.overrides)
    )
    plan(request, as_json=options.json)


def compare_command(options: argparse.Namespace) -> None:
    """Several methods, budgets and seeds, in parallel; raw tables and statistics."""
    from pcm_rl.compare.plan import Comparison
    from pcm_rl.compare.run import compare

    variants = _named(options.variant, "--variant")
    comparison = Comparison(
        options.config, options.overrides, options.methods, variants, options.budgets, options.seeds
    )
    compare(comparison, jobs=options.jobs, baseline=options.baseline)


def plot_command(options: argparse.Namespace) -> None:
    """Write report.html of a run folder again."""
    from pcm_rl.reports.page import write_report

    print(f"report: {write_report(Path(options.folder))}")


def export_command(options: argparse.Namespace) -> None:
    """Write a run's policy as a checkpoint folder, with a model card."""
    from pcm_rl.evals.export import export_run
    from pcm_rl.evals.push import check_repository, push_to_hub

    if options.push is not None:
        check_repository(options.push, private=not options.public)
    run, folder, base = options.run_folder, options.folder, options.base_model
    print(f"written: {export_run(run, folder, adapters=options.adapters, base_model=base)}")
    if options.push is not None:
        print(f"pushed: {push_to_hub(folder, options.push, private=not options.public)}")


def _named(columns: Sequence[tuple[str, list[str]]], option: str) -> dict[str, list[str]]:
    named = dict(columns)
    if len(named) < len(columns):
        raise ConfigError(f"two {option} have one name; every column needs its own")
    return named
