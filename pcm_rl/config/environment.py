"""Configuration of the environment, and of demonstrations in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from pcm_rl.config.checks import ConfigError, at_least, one_of


@dataclass(frozen=True)
class EnvConfig:
    """The environment, and how it is chunked and split.

    Attributes:
        id: A registered Gymnasium id whose actions are a ``Box [D]``.
        kwargs: Keyword arguments of the environment.
        tasks: Several tasks for one policy: a keyword argument with its value for each task, such as
            ``{task_id: [0, 1, 2]}``; several arguments are read side by side. Empty for a single task.
        import_module: Module to import first, so that ``id`` is registered (``metaworld`` for MetaWorld's ids).
        num_envs: Environments stepped together; with several training processes, those of each.
        workers: One process an environment (simulators); False steps the environment's own vectorised core.
        timeout: Seconds without an answer after which a worker is taken for hung and restarted.
        chunk_length: L, steps a chunk.
        max_chunks: Chunk slots of a full episode; what ``padding=keep`` pads to.
        gripper_index: Action dimension that commands the gripper.
        close_above: Gripper commands strictly above close.
        labeller: Phase rule as ``module:function`` (see ``pcm_rl.episodes.label_episodes``); None is the gripper rule.
        labeller_kwargs: Keyword arguments of that function, such as ``{near: 0.6}``.
        init_state: How the environment names initial states: ``option`` (``reset(options={"init_state": k})``) or
            ``seed`` (``reset(seed=k)``).
        success: Key of ``info`` that tells success, where it is not ``success``.
        num_states: Number of initial states a task (LIBERO: 50); None where the environment has no fixed number.
        eval_states: Initial states a task held out for evaluation, never trained on.
        images: Prepare images as OpenVLA expects them: keyword arguments of ``pcm_rl.envs.OpenVLAImages``, ``{}`` for
            its defaults; None leaves them.
    """

    id: str = "pcm_rl/PickPlace-v0"
    kwargs: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, list[Any]] = field(default_factory=dict)
    import_module: Optional[str] = None  # noqa: UP045 - OmegaConf on Python 3.10 wants the long form
    num_envs: int = 80
    workers: bool = False
    timeout: float = 120.0
    chunk_length: int = 8
    max_chunks: int = 64
    gripper_index: int = -1
    close_above: float = 0.0
    labeller: Optional[str] = None  # noqa: UP045
    labeller_kwargs: dict[str, Any] = field(default_factory=dict)
    init_state: str = "option"
    success: Optional[str] = None  # noqa: UP045
    num_states: Optional[int] = None  # noqa: UP045
    eval_states: int = 256
    images: Optional[dict[str, Any]] = None  # noqa: UP045

    def __post_init__(self) -> None:
        at_least(1, self, "num_envs", "chunk_length", "max_chunks", "eval_states")
        one_of(self, "init_state", ("option", "seed"))
        if self.labeller is not None and self.labeller.count(":") != 1:
            raise ConfigError(f"labeller must be module:function, got {self.labeller!r}")
        if self.labeller_kwargs and self.labeller is None:
            raise ConfigError(f"labeller_kwargs are given without a labeller, got {dict(self.labeller_kwargs)}")
        if twice := sorted(set(self.kwargs) & set(self.tasks)):
            raise ConfigError(f"{', '.join(twice)} stands in kwargs and in tasks; give it in one of them")
        lengths = {key: len(values) for key, values in self.tasks.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise ConfigError(f"tasks must give every argument as many values, at least one, got {lengths}")
        if self.num_tasks > 1 and self.num_states is None:
            raise ConfigError("several tasks need num_states, the number of initial states a task")

    @property
    def num_tasks(self) -> int:
        """T, 1 where no ``tasks`` are given."""
        return max((len(values) for values in self.tasks.values()), default=1)

    def task_kwargs(self, task: int) -> dict[str, Any]:
        """Keyword arguments of the environment of task ``task``."""
        return {**self.kwargs, **{key: values[task] for key, values in self.tasks.items()}}


@dataclass(frozen=True)
class DemoConfig:
    """Demonstrations of the scripted expert.

    Attributes:
        path: Dataset file; recorded there if missing. None keeps it in memory.
        episodes: Number of successful demonstrations a task.
        noise: Standard deviation of the noise on executed actions; the labels stay clean.
        mistakes: Share of demonstrations with a deliberate mis-grasp and recovery, where the expert has them.
    """

    path: Optional[str] = None  # noqa: UP045
    episodes: int = 30
    noise: float = 0.2
    mistakes: float = 0.3

    def __post_init__(self) -> None:
        at_least(1, self, "episodes")
        at_least(0.0, self, "noise", "mistakes")
