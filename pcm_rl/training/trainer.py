"""GRPO with chunk selection: collect, advantage, select, pack, update, evaluate, save.

Deviations from the paper are listed in ``docs/deviations.md``; every number that a run writes is explained in its
report. Start it with ``pcm-rl train``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pcm_rl.algos.sft import supervise
from pcm_rl.algos.transforms import PCMSampler
from pcm_rl.batchwide import outcome_advantage
from pcm_rl.config import Config, save_config
from pcm_rl.episodes import (
    ADVANTAGE,
    CHUNK_ID,
    EPISODE,
    GROUP,
    INSTRUCTION,
    IS_PAD,
    PHASE,
    STATE,
    SUCCESS,
    EpisodeIndex,
    label_episodes,
    pad_episodes,
)
from pcm_rl.processes.exchange import Complete, pool
from pcm_rl.processes.launch import joined
from pcm_rl.processes.ranks import ALONE, Ranks, on_first_rank
from pcm_rl.reports.metrics import RunLog, step_line
from pcm_rl.reports.page import write_report
from pcm_rl.reports.run_end import film_run, hardware, run_end_text, write_budget
from pcm_rl.rollouts.collect import collect_episodes, episode_outcomes
from pcm_rl.rollouts.demonstrations import demonstrations
from pcm_rl.rollouts.environments import make_vector_env, phase_rule
from pcm_rl.rollouts.evaluate import Evaluation, evaluate
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.rollouts.rows import listens
from pcm_rl.training.build import make_critic, make_policy
from pcm_rl.training.checkpoint import load_checkpoint, policy_metadata, save_checkpoint
from pcm_rl.training.learner import make_loss, make_optimizer, update_policy
from pcm_rl.training.memory import wants_checkpointing
from pcm_rl.training.probe import check_log_probs
from pcm_rl.training.update_cost import profile_update

EVALUATION_SEED = 12345  # sampled actions of evaluations: the same in every run, apart from training's
Say = Callable[[str], None]
say_now = functools.partial(print, flush=True)  # a line a step is for watching, also through a pipe


class Trainer:
    """Everything a run consists of, and one method for each thing that happens to it.

    Args:
        config: The run.
        say: Gets each line for a person.
        ranks: The processes that train together; the first one writes and talks.
    """

    def __init__(self, config: Config, say: Say = say_now, ranks: Ranks = ALONE) -> None:
        self.config, self.say, self.ranks = config, ranks.voice(say), ranks
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.folder = config.folder
        self.env = make_vector_env(config.env)
        self.policy = make_policy(config, self.env)
        self.critic = make_critic(config, self.env)
        self.loss = make_loss(self.policy, config)
        self.optimizer = make_optimizer(self.policy, config)
        chosen = config.selection
        self.sampler = PCMSampler(
            chosen.budget,
            selection=chosen.name,
            padding=chosen.padding,
            floor=chosen.floor,
            refresh_every=chosen.refresh_every,
            seed=config.seed,
        )
        self.phase_rule = phase_rule(config.env)
        self.states = InitialStates.of(config)
        if config.policy.init is not None:
            self.states.check_policy(policy_metadata(config.policy.init), config.env.id)
        self.generator = torch.Generator().manual_seed(config.seed)  # demonstrations' rows and minibatches
        self.step = 0
        self.seconds = 0.0
        self.summary: dict[str, Any] = {"init_states": self.states.describe(), "hardware": hardware(ranks.size)}
        self.probed = False  # whether recorded log-probs were worked out again and found equal
        # last batch of mixed groups, for the profile and the budget curve, and what completes its rows (see pool)
        self.batch: TensorDictBase | None = None
        self.complete: Complete | None = None
        self.log: RunLog | None = None

    # -- before training ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Supervised start and the first evaluation, in a fresh folder.

        Raises:
            FileExistsError: If the folder already holds a run.
        """
        self._open_folder()
        if self.config.policy.init is None:
            self.supervised_start()
        self.summary["before"] = self.evaluate().success.as_dict()
        self.save()

    @on_first_rank
    def _open_folder(self) -> None:
        refuse_existing(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.folder / "config.yaml")
        self._open_log(None)

    @on_first_rank
    def _open_log(self, keep_until: int | None) -> None:
        self.log = RunLog(self.folder, self.config.logger, keep_until)

    def supervised_start(self) -> None:
        """Behaviour cloning from few demonstrations; with ``sft.steps=0`` the policy stays as it is.

        Several processes do the same steps each: it is short, and the gradients would be the same.
        """
        if not self.config.sft.steps:
            return
        started = time.perf_counter()
        demos = self.ranks.rows_of_first(lambda: demonstrations(self.config, self.say))
        sft = self.config.sft
        losses = supervise(
            self.policy,
            demos,
            steps=sft.steps,
            batch_size=sft.batch_size,
            lr=sft.lr,
            generator=self.generator,
            stop=None if sft.target is None else self._reached_target,
            stop_every=sft.check_every,
        )
        self.ranks.equalise(self.policy)
        self.say(
            f"supervised start: {len(demos)} steps of demonstrations, {len(losses)} gradient steps, "
            f"{losses[-1]:.3f} nats a token, {time.perf_counter() - started:.1f} s"
        )

    def _reached_target(self) -> bool:
        """Whether the policy succeeds often enough on training states; the cursor over them stays where it is."""
        sft = self.config.sft
        assert sft.target is not None
        result = self._roll_out(InitialStates.of(self.config).deal(sft.check_episodes), sft.check_episodes).success
        self.say(f"supervised start: success {result} on training states, wanted {sft.target:.0%}")
        return result.success >= sft.target

    def resume(self) -> None:
        """Continue from the last checkpoint."""
        state = load_checkpoint(
            self.folder / "checkpoint",
            policy=self.policy,
            optimizer=self.optimizer,
            generators=self._generators(),
            critic=self.critic,
        )
        self.states.check_start(state["summary"]["init_states"]["evaluation"])  # an override may change the split
        self.step, self.seconds = state["step"], state["seconds"]
        self.sampler.keep.load_state_dict(state["keep"])
        self.states.load_state_dict(state["states"])
        self.summary = state["summary"]
        self._open_log(self.step)
        self.say(f"resumed {self.folder} after step {self.step}")

    # -- one step -----------------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        """Collect, advantage, select, pack, update; the row for ``metrics.csv``."""
        config, started = self.config, time.perf_counter()
        own = self.collect()
        if not self.probed:
            self.probe(own)
        rows, complete = self.pool(own)
        rollout_s = time.perf_counter() - started
        select_started = time.perf_counter()
        mixed = self.mixed(rows)
        outcome, group = episode_outcomes(rows)
        self.step += 1
        metrics: dict[str, float] = {
            "step": self.step,
            "success": float(outcome.float().mean()),
            "trajectories": len(outcome),
            "groups": len(group.unique()),
            "groups_mixed": int(mixed.get(GROUP).unique().numel()),
            "groups_dropped": config.groups - len(group.unique()),
            "rollout_s": rollout_s,
            "env_steps": int((~rows.get(IS_PAD)).sum()),
            "worker_restarts": sum(self.ranks.gather_json(getattr(self.env, "restarts", 0))),
        }
        learned = {} if self.critic is None else self.critic.fit(rows)
        if len(mixed):
            self.batch, self.complete = mixed, complete
            kept = complete(self.select(rows, mixed))
            update_started = time.perf_counter()
            metrics |= self.sampler.stats | learned | self.update(kept)
            metrics["select_s"] = update_started - select_started
            metrics["update_s"] = time.perf_counter() - update_started
        metrics["step_s"] = time.perf_counter() - started
        self.seconds += metrics["step_s"]
        return metrics

    def probe(self, rows: TensorDict) -> None:
        """Before the first update: do recorded log-probs hold, and does a micro-batch fit into memory?"""
        check_log_probs(self.policy, rows)
        if self.config.policy.checkpoint is not None:
            recompute, reason = wants_checkpointing(self.policy, rows, self.config)
            self.policy.model.set_checkpointing(recompute)
            self.say(f"gradient checkpointing {'on' if recompute else 'off'}: {reason}")
        self.probed = True

    def record(self, metrics: dict[str, float]) -> None:
        """Log a step and say it."""
        if self.log is not None:
            self.log.step(metrics)
        self.say(step_line(metrics, self.config.steps))

    def collect(self) -> TensorDict:
        """Whole episodes of this process's share of ``groups * group_size`` rollouts, phases labelled."""
        config = self.config
        self.ranks.draw_apart(config.seed, self.step)
        mine = self.ranks.share(torch.arange(config.groups))
        init_state = self.states.deal(config.groups)[mine].repeat_interleave(config.group_size)
        group = mine.repeat_interleave(config.group_size)
        task = self.states.task_of(init_state)
        rows = collect_episodes(self.env, self.policy, init_state, group, device=config.device, task=task)
        if not listens(self.policy):
            rows = rows.exclude(INSTRUCTION)  # indexing a stack of texts takes longer than the update
        return rows.set(PHASE, label_episodes(rows, **self.phase_rule))

    def pool(self, own: TensorDict) -> tuple[TensorDict, Complete]:
        """What all processes have to see of each other's rows; see :func:`~pcm_rl.processes.exchange.pool`."""
        return pool(self.ranks, own, () if self.critic is None else (STATE, CHUNK_ID))

    def mixed(self, rows: TensorDict) -> TensorDict:
        """Write the advantage of every row; those of the groups with both outcomes: no other group has a signal."""
        advantage = outcome_advantage(rows.get(SUCCESS), rows.get(GROUP), EpisodeIndex(rows.get(EPISODE)))
        signal = advantage != 0
        if self.critic is not None and bool(self.critic.fitted) and bool(signal.any()):
            advantage = torch.zeros_like(advantage)
            advantage[signal] = self.critic.advantage(rows[signal])
        rows.set(ADVANTAGE, advantage)
        return rows[signal]

    def select(self, rows: TensorDict, mixed: TensorDict) -> TensorDictBase:
        """The rows that go through the update, with their weights.

        A budget for the whole batch is that of all its ``rows``; drawn a trajectory, chunks come from the ``mixed``.
        """
        chosen = self.config.selection
        if chosen.name != "top-advantage":
            return self.sampler(pad_episodes(mixed, self.config.env.max_chunks) if chosen.padding == "keep" else mixed)
        kept = self.sampler(rows)
        valid = int((~mixed.get(IS_PAD)).any(-1).sum())  # what full GRPO would take, as for the other selections
        self.sampler.stats |= {"chunks_valid": float(valid), "kept_fraction": len(kept) / valid}
        return kept

    def update(self, kept: TensorDictBase) -> dict[str, float]:
        """One GRPO update on the kept rows."""
        return update_policy(self.loss, self.optimizer, kept, self.config, self.generator, self.ranks)

    # -- evaluation and saving ----------------------------------------------------------------------------------------

    def evaluate(self) -> Evaluation:
        """Success on the held-out initial states, logged."""
        result = self._roll_out(self.states.evaluation, self.config.eval_episodes)
        if self.log is not None:
            self.log.evaluated({"step": self.step, **result.success.as_dict()})
        self.say(f"evaluation after step {self.step}: {result.line()}")
        return result

    def _roll_out(self, states: Tensor, episodes: int) -> Evaluation:
        task, device = self.states.task_of(states), self.config.device
        return evaluate(
            self.env, self.policy, states, episodes, seed=EVALUATION_SEED, device=device, task=task, ranks=self.ranks
        )

    def save(self) -> None:
        """Write the checkpoint that :meth:`resume` continues from."""
        for module in (self.policy, self.critic):
            if module is not None:
                self.ranks.check_parameters(module)
        self._write_checkpoint()

    @on_first_rank
    def _write_checkpoint(self) -> None:
        save_checkpoint(
            self.folder / "checkpoint",
            policy=self.policy,
            optimizer=self.optimizer,
            generators=self._generators(),
            state={
                "step": self.step,
                "seconds": self.seconds,
                "keep": self.sampler.keep.state_dict(),
                "states": self.states.state_dict(),
                "summary": self.summary,
            },
            critic=self.critic,
            metadata=self.origin(),
        )

    def origin(self) -> dict[str, str]:
        """What a later run has to know of this policy before it starts from it."""
        return {"env": self.config.env.id, "held_out": self.states.describe()["evaluation"]}

    def _generators(self) -> dict[str, torch.Generator]:
        critic = {} if self.critic is None else {"critic": self.critic.generator}
        return {"sampler": self.sampler.generator, "minibatches": self.generator, **critic}

    # -- after training -----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Last evaluation, measured update cost, films, report."""
        evaluation = self.evaluate()
        self.summary["after"] = evaluation.success.as_dict()
        self.summary["seconds"] = self.seconds
        self.save()
        if self.batch is None:  # a resumed run that had no step left to do
            rows, self.complete = self.pool(self.collect())
            self.batch = self.mixed(rows)
        assert self.complete is not None
        self._report(evaluation, self.complete(self.batch))

    @on_first_rank
    def _report(self, evaluation: Evaluation, batch: TensorDictBase) -> None:
        if len(batch):
            write_budget(self.config, batch)
            costs = profile_update(self.policy, batch, self.config, probs=self.sampler.keep.probs)
            self.summary["profile"] = [cost.as_dict() for cost in costs]
        else:
            self.say("no group had both outcomes, so the cost of an update was not measured")
        (self.folder / "summary.json").write_text(json.dumps(self.summary, indent=1))
        if self.config.record:
            film_run(self.config, evaluation, self.say)
        report = write_report(self.folder)
        self.say(run_end_text(self.summary, report))


def train(config: Config, *, resume: bool = False, say: Say = say_now) -> Trainer:
    """Run ``config`` to its end; the folder then holds metrics, checkpoint and report.

    Under ``torchrun`` all its processes train together (see ``docs/distributed.md``).

    Args:
        config: The run.
        resume: Continue from the folder's checkpoint.
        say: Gets each line for a person.
    """
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(joined(config))
        if ranks.first and not resume:
            refuse_existing(config.folder)  # before simulators are built
        trainer = Trainer(config, say, ranks)
        stack.enter_context(contextlib.closing(trainer.env))
        trainer.resume() if resume else trainer.start()
        while trainer.step < config.steps:
            trainer.record(trainer.train_step())
            last = trainer.step == config.steps
            if config.eval_every and trainer.step % config.eval_every == 0 and not last:
                trainer.evaluate()
            if config.save_every and trainer.step % config.save_every == 0 and not last:
                trainer.save()
        trainer.finish()
    return trainer


def refuse_existing(folder: Path) -> None:
    """Raise ``FileExistsError`` if ``folder`` already holds a run: nothing saved is overwritten."""
    if (folder / "metrics.csv").exists():
        raise FileExistsError(
            f"{folder} already holds a run; continue it with --resume {folder}, give another name=..., or delete it"
        )
