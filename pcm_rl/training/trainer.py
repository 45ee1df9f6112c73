"""GRPO with chunk selection: collect, advantage, select, update, evaluate, save.

``docs/deviations.md`` lists deviations from the paper, ``docs/metrics.md`` the numbers that a run writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from pcm_rl.config import Config
from pcm_rl.processes.alike import check_alike, check_frozen
from pcm_rl.processes.exchange import Complete
from pcm_rl.processes.files import of_first
from pcm_rl.processes.launch import egl_line, joined
from pcm_rl.processes.ranks import ALONE, Ranks, on_first_rank
from pcm_rl.reports.metrics import step_line
from pcm_rl.reports.run_end import hardware
from pcm_rl.reports.versions import training_versions
from pcm_rl.rollouts.decisions import Decisions
from pcm_rl.rollouts.environments import make_vector_env
from pcm_rl.rollouts.evaluate import Evaluation, evaluate
from pcm_rl.rollouts.initial_states import InitialStates
from pcm_rl.rollouts.rows import rollout_metrics
from pcm_rl.training.ahead import Ahead
from pcm_rl.training.checkpoint import ACTING, Snapshot, load_checkpoint, load_policy, policy_metadata
from pcm_rl.training.cuts import Cuts
from pcm_rl.training.finish import report_run
from pcm_rl.training.generations import NEWEST, best, newest_whole
from pcm_rl.training.grpo import GRPO
from pcm_rl.training.lock import locked
from pcm_rl.training.output import Output
from pcm_rl.training.patience import Patience
from pcm_rl.training.play import Play
from pcm_rl.training.probe import heed_first_look
from pcm_rl.training.run_folder import check_new_run, find_resume, run_id
from pcm_rl.training.signals import Interrupted, Listener, listening
from pcm_rl.training.spent import Spent
from pcm_rl.training.start import start_at_hand, supervised_start
from pcm_rl.training.trial import check_sane, rows_at_hand

EVALUATION_SEED = 12345  # sampled actions of evaluations: the same in every run, apart from training's
Say = Callable[[str], None]


def say_now(line: str) -> None:
    """Print a line at once, also through a pipe; a reader that is gone, or a full disk, does not end a run."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def train(config: Config, *, resume: bool = False, say: Say = say_now) -> Trainer:
    """Run ``config`` to its end; its folder then has metrics, checkpoint and report.

    A first SIGINT, SIGTERM, SIGHUP or SIGUSR1 abandons the step that is under way and saves the one before it. Whatever
    else ends the run, the last completed step is saved too, except where numbers have become nan.

    Under ``torchrun`` all processes train together (see ``docs/distributed.md``).

    Args:
        config: The run.
        resume: Continue from the folder's checkpoint.
        say: Called with each line of text.

    Raises:
        ConfigError: The run is not possible, or not from what is in its folder.
        FileExistsError: The folder holds another run, or another process is at it.
        FloatingPointError: Training has diverged.
        Interrupted: A signal came.
    """
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(joined(config))
        listener = stack.enter_context(listening(ranks))
        if ranks.first:  # before simulators are built
            if not resume:
                check_new_run(config)
            stack.enter_context(locked(config.folder))
            if resume:
                find_resume(config.folder)
        if line := egl_line(ranks):
            ranks.voice(say)(line)
        check_alike(ranks, config)
        trainer = Trainer(stack.enter_context(start_at_hand(config, ranks)), say, ranks)
        check_frozen(ranks, trainer.policy)
        stack.enter_context(contextlib.closing(trainer.env))
        stack.callback(trainer.ahead.abandon)
        stack.push(trainer.close_output)
        with trainer.saved_whatever_happens(listener):
            trainer.resume() if resume else trainer.start()
            while True:
                trainer.evaluate_and_save()
                if trainer.done:
                    break
                metrics = trainer.train_step()
                hopeless = trainer.patience.ends(metrics["successes"])
                trainer.complete(metrics)
                listener.check()
                if hopeless and not trainer.done:
                    raise trainer.patience.error(config.folder, metrics["trajectories"])
            trainer.finish()
    return trainer


class Trainer:
    """A run: its parts, its step, and its checkpoints.

    Args:
        config: The run.
        say: Called with each line of text.
        ranks: The processes that train together; the first one writes and prints.
    """

    def __init__(self, config: Config, say: Say = say_now, ranks: Ranks = ALONE) -> None:
        self.config, self.say, self.ranks = config, ranks.voice(say), ranks
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.env = make_vector_env(config.env)
        self.grpo = GRPO(config, self.env, self.ranks)
        self.policy = self.grpo.policy
        self.states = InitialStates.of(config)
        if config.policy.init is not None:
            self.states.check_policy(policy_metadata(config.policy.init), config.env.id)
        self.spent = Spent()
        self.summary: dict[str, Any] = {
            "init_states": self.states.describe(),
            "hardware": hardware(ranks.size),
            "versions": training_versions(config.env.id),
        }
        self.output: Output | None = None  # on the first process, once the folder is open
        self.evaluated: tuple[int, float | None] = (-1, None)  # step and success of the last evaluation
        self.saved: int | None = None  # step of the newest checkpoint
        self.held: Snapshot | None = None  # the last completed step
        self.at_hand: TensorDictBase | None = None  # a few rows to try the policy on
        self.patience = Patience(config.patience)
        self.cuts = Cuts(self.grpo.config, self.env, self.grpo.credit)
        self.decisions = Decisions.of(config.rollouts)
        self.decisions.check(self.env, self.policy)
        self.play = Play(config, self.env, self.states, self.cuts, self.decisions, self.ranks)
        self.ahead = Ahead(self.play, self.policy, self.states, device=config.device, overlap=config.rollouts.overlap)
        self.probed = False  # whether recorded log-probs were computed again and found equal
        self.looked = False  # whether the first episodes were looked at
        self.latest: tuple[TensorDictBase, Complete] | None = None  # rows of the last step with a signal

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.config.folder

    @property
    def step(self) -> int:
        """Training steps so far."""
        return self.spent.step

    @property
    def done(self) -> bool:
        """Whether all training steps are made."""
        return self.spent.reaches(self.config)

    # -- one step -----------------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        """Collect, advantage, select, update; the row for ``metrics.csv``."""
        started = time.perf_counter()
        grpo = self.grpo
        recorded, rollout_s, acted = self.ahead.take(self.step)
        if len(recorded):
            self.at_hand = rows_at_hand(self.policy, recorded)
        if not self.looked:
            heed_first_look(recorded, self.env, self.policy, grpo.config, self.ranks, self.say)
            self.looked = True
        if not self.probed and len(recorded):
            grpo.probe(recorded, acted, self.say)
            self.probed = True
        rows, complete = self.ranks.exchange(self._observed(recorded), self.shared_entries)
        collected = time.perf_counter()
        counted = self.cuts.count(rollout_metrics(rows, self.config.groups), rows)
        share = self.spent.share(self.config)
        self.spent.begin(counted)
        signal = grpo.write_advantage(rows)
        metrics = {"step": self.step, **counted, "rollout_s": rollout_s, "worker_restarts": self._restarts()}
        learned = {} if grpo.credit.fit is None else grpo.credit.fit(rows)
        if bool(signal.any()):
            kept = complete(grpo.select(rows, signal))
            selected = time.perf_counter()
            if not self.done:
                self.ahead.start(self.step)
            metrics |= grpo.sampler.stats | learned | grpo.update(kept, share)
            metrics |= {"select_s": selected - collected, "update_s": time.perf_counter() - selected}
            self.latest = rows[signal], complete
        metrics["step_s"] = time.perf_counter() - started
        self.spent.end(metrics, self.config.update.epochs)
        return metrics

    def collect(self) -> TensorDict:
        """Whole episodes of this process's share of a step, with phases and what the credit reads.

        Rows that were collected ahead stay for the next step.
        """
        self.ahead.settle()
        return self._observed(self.play(self.policy, self.step))

    def _observed(self, rows: TensorDict) -> TensorDict:
        if self.grpo.credit.observe is not None and len(rows):
            self.grpo.credit.observe(rows)
        return rows

    @property
    def shared_entries(self) -> tuple[NestedKey, ...]:
        """Entries that credit and rule read of all rows, also of rows that other processes collected."""
        return (*self.grpo.credit.reads, *self.grpo.sampler.rule.reads)

    def _restarts(self) -> int:
        """Number of restarted workers, of all processes."""
        return sum(self.ranks.gather_json(getattr(self.env, "restarts", 0)))

    def complete(self, metrics: dict[str, float]) -> None:
        """Log a step, hold it, and only then print its line: a step that was printed is never lost."""
        if self.output is not None:
            self.output.log.step(metrics)
        self.hold()
        self.say(step_line(metrics, self.config.steps))

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self) -> Evaluation:
        """Success on the held-out initial states, logged."""
        result = self._roll_out(self.states.evaluation, self.config.eval_episodes)
        self.evaluated = self.step, result.success.success
        if self.at_hand is None:
            self.at_hand = rows_at_hand(self.policy, result.rows)
        if self.output is not None:
            self.output.log.evaluated({**self.spent.columns(), **result.success.as_dict()})
        self.say(f"evaluation after step {self.step}: {result.line()}")
        return result

    def evaluate_and_save(self) -> None:
        """What is due after this step and was not done yet; the end of the run does both in any case."""
        config, step = self.config, self.step
        if self.done:
            return
        if pending := bool(config.eval_every) and step % config.eval_every == 0 and self.evaluated[0] != step:
            self.evaluate()
            self.hold()
        if config.save_every and step % config.save_every == 0 and (pending or self.saved != step):
            self.save()

    def _roll_out(self, states: Tensor, episodes: int) -> Evaluation:
        self.ahead.settle()
        task, device = self.states.task_of(states), self.config.device
        return evaluate(
            self.env,
            self.policy,
            states,
            episodes,
            seed=EVALUATION_SEED,
            device=device,
            task=task,
            ranks=self.ranks,
            decisions=self.decisions,
        )

    # -- begin, save, resume, end -------------------------------------------------------------------------------------

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

    def supervised_start(self) -> None:
        """See :func:`pcm_rl.training.start.supervised_start`; the cursor over training states does not move."""
        episodes = self.config.sft.check_episodes
        supervised_start(
            self.policy,
            self.config,
            generator=self.grpo.generator,
            measure=lambda: self._roll_out(InitialStates.of(self.config).deal(episodes), episodes).success,
            ranks=self.ranks,
            say=self.say,
        )

    @on_first_rank
    def hold(self) -> None:
        """Try what the last step has made, and copy it: what ends the next step early goes back to here.

        Raises:
            FloatingPointError: A weight or a log-prob is not finite.
        """
        parts, origin = self.grpo.saved(), self.ahead.origin
        check_sane(self.step, self.policy, parts["optimizer"], parts["critic"], self.at_hand)
        state = {
            **self.spent.state_dict(),
            "keep": self.grpo.sampler.keep.state_dict(),
            "states": self.states.state_dict() if origin is None else origin.states,
            "steps_without_success": self.patience.steps,
            "cuts": self.cuts.state_dict(),
            "summary": self.summary,
            "evaluated": self.evaluated[0],
        }
        success = self.evaluated[1] if self.evaluated[0] == self.step else None
        self.held = Snapshot.of(**parts, state=state, success=success, metadata=self.origin(), ahead=origin)

    def save(self) -> None:
        """Write the checkpoint that :meth:`resume` continues from; the older ones stay until it is complete."""
        try:
            self.grpo.check_same()
        except RuntimeError:
            self.held = None  # which process is right is not known: nothing of this is saved
            raise
        self.hold()
        self._write_checkpoint()
        self.saved = self.step

    @contextlib.contextmanager
    def saved_whatever_happens(self, listener: Listener) -> Iterator[None]:
        """Save the last completed step if a signal or an error ends the block; not if numbers have become nan.

        Raises:
            Interrupted: After a signal, whatever error has come of it.
        """
        try:
            yield
        except BaseException as error:
            if self.held is not None and self.saved != self.held.step and not isinstance(error, FloatingPointError):
                with contextlib.suppress(OSError):  # a full disk: it is the error already
                    self._write_last()
            if listener.received is None:
                raise
            listener.received.saved = self.saved
            if error is listener.received:
                raise
            raise listener.received from error

    def resume(self) -> None:
        """Continue from the newest checkpoint that is whole."""
        checkpoint = newest_whole(self.folder, run_id(self.folder), self.say) if self.ranks.first else None
        with of_first(self.ranks, checkpoint) as whole:
            self._restore(whole)
        self._open_folder(checkpoint)
        self.say(f"resumed {self.folder} after step {self.step}")

    def _restore(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, **self.grpo.saved())
        self.states.check_start(state["summary"]["init_states"]["evaluation"])  # an override may change the split
        self.spent.load_state_dict(state)
        self.summary = state["summary"]
        self.evaluated, self.saved = (state.get("evaluated", self.step), None), self.step
        self.grpo.sampler.keep.load_state_dict(state["keep"])
        self.states.load_state_dict(state["states"])
        self.patience.steps = state.get("steps_without_success", 0)  # older checkpoints have none
        self.cuts.load_state_dict(state.get("cuts", self.cuts.state_dict()))
        if self.ahead.acting is not None and (checkpoint / ACTING).is_file():
            load_policy(self.ahead.acting, checkpoint / ACTING)
            self.ahead.owe()

    def finish(self) -> None:
        """Last evaluation, checkpoint, measured update cost, films, report."""
        evaluation = self.evaluate()
        self.summary |= {"after": evaluation.success.as_dict(), "seconds": self.spent.seconds}
        self.save()
        if self.latest is None:  # a resumed run that had no step left to do
            rows, complete = self.ranks.exchange(self.collect(), self.shared_entries)
            self.latest = rows[self.grpo.write_advantage(rows)], complete
        self._name_best()
        light, complete = self.latest
        self._report(evaluation, complete(light))

    @on_first_rank
    def _report(self, evaluation: Evaluation, batch: TensorDictBase) -> None:
        report_run(
            self.grpo.config, self.policy, batch, self.grpo.sampler.keep.probs, evaluation, self.summary, self.say
        )

    @on_first_rank
    def _name_best(self) -> None:
        top = best(self.folder)
        if top is not None and top[0].name != NEWEST:
            self.say(f"the best of the evaluated checkpoints is another than the last: {top[0]}, {top[1]:.1%}")

    @on_first_rank
    def _open_folder(self, checkpoint: Path | None = None) -> None:
        """Make the folder, or continue in it from a checkpoint."""
        resumed = None if checkpoint is None else (checkpoint, self.step)
        self.output = Output(self.config, self.grpo.credit.metrics, self.say, resumed)

    @on_first_rank
    def _write_checkpoint(self) -> None:
        assert self.held is not None and self.output is not None
        self.output.save(self.held)

    def close_output(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the run where it is logged, after an exception of this kind or after none."""
        if self.output is not None:
            stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
            self.output.log.close("finished" if kind is None else "interrupted" if stopped else "failed")

    def _write_last(self) -> None:
        """Write what is held; a first signal that comes in between, after an error, has it begin again."""
        try:
            self._write_checkpoint()
        except Interrupted:
            self._write_checkpoint()
        assert self.held is not None
        self.saved = self.held.step

    def origin(self) -> dict[str, str]:
        """Metadata that a later run needs before it starts from this policy, or exports it."""
        chunk = " ".join(map(str, self.env.single_action_space.shape or ()))
        return {"env": self.config.env.id, "held_out": self.states.describe()["evaluation"], "chunk": chunk}
