"""Configuration of the environment, and of demonstrations in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from pcm_rl.config.checks import ConfigError, at_least, finite, one_of, positive, within
from pcm_rl.config.cluster import RayConfig
from pcm_rl.support.plugins import is_plugin

_LABELLERS = "pcm_rl.labellers:label_by_time (periods of time) or pcm_rl.labellers:label_by_distance (hand and object)"
PREPARATIONS = ("openvla", "pi0")  # of images


@dataclass(frozen=True)
class EnvConfig:
    """The environment, and how it is chunked and split.

    Attributes:
        id: A registered Gymnasium id whose actions are a ``Box [D]``.
        kwargs: Keyword arguments of the environment.
        tasks: Several tasks for one policy: a keyword argument with its value for each task, such as
            ``{task_id: [0, 1, 2]}``; several arguments are read side by side. Empty for a single task.
        wrappers: Wrappers of each environment, the first one innermost: ``module:Class``, or a mapping
            ``{name: module:Class, kwargs: {...}}``; such as ``gymnasium.wrappers:FlattenObservation`` for observations
            in several parts.
        observation: Parts of a ``Dict`` observation that the policy gets, ``pixels.top`` for a part of a part. A list
            joins them to one vector: ``[observation, desired_goal]``. A mapping gives new names, to one part or to
            several, which become a vector: ``{image: pixels.top, state: [agent_pos]}``. null leaves it as it is.
        import_module: Module to import first, so that ``id`` is registered (``metaworld`` for MetaWorld's ids).
        num_envs: Environments stepped together; with several training processes, those of each.
        workers: True gives every environment a process of its own (simulators); False steps the environment's own
            vectorised core; ``ray`` has those processes on a Ray cluster, also on other machines.
        ray: The cluster, with ``workers=ray``.
        keep_tasks: Simulators that an environment of several tasks keeps; the one whose task was played longest ago is
            closed, and built again when it is needed. null keeps all.
        timeout: Seconds without an answer after which a worker is taken for hung and restarted.
        chunk_length: L, steps a chunk.
        max_chunks: Chunk slots of a full episode; what ``padding=keep`` pads to. null follows from the horizon and
            ``chunk_length``; it is 64 where the environment does not tell its horizon.
        gripper_index: Action dimension that commands the gripper; null where there is no gripper, which needs a
            ``labeller`` or ``closed``.
        close_above: Gripper commands strictly above close, in the environment's own units (after ``wrappers``).
        close_below: Gripper commands strictly below close, in place of those above ``close_above``; null where it is
            not so.
        closed: ``module:function`` of actions ``[..., D]`` -> bool ``[...]``: which of them close the gripper, where
            one number is not enough; in place of the three above.
        labeller: Phase rule as ``module:function`` (see ``pcm_rl.episodes.label_episodes``); None is the gripper rule.
        labeller_kwargs: Keyword arguments of that function, such as ``{near: 0.6}``.
        init_state: How the environment names initial states: ``option`` (``reset(options={"init_state": k})``) or
            ``seed`` (``reset(seed=k)``).
        same_starts: Refuse groups whose episodes begin with different observations; false where observations are noisy
            on purpose.
        success: Key of ``info`` that tells success, or ``module:function``, called as ``function(env, info) -> bool``
            after every step; ``positive_reward`` is a reward above 0, also where the episode goes on; null is
            ``success`` or ``is_success``, else an end with a positive reward.
        reward: ``sum`` of the environment's rewards over a chunk, or ``success``: 1 for the chunk of the first success.
        num_states: Number of initial states a task (LIBERO: 50); None where the environment has no fixed number.
        eval_states: Initial states a task held out for evaluation, never trained on.
        images: Prepare images as a policy's checkpoint expects them: keyword arguments of
            ``pcm_rl.envs.OpenVLAImages``, ``{}`` for its defaults; with ``prepare: pi0`` among them those of
            ``pcm_rl.envs.Pi0Images``. None leaves images as they are.
    """

    SECTION: ClassVar[str] = "env."

    id: str = "pcm_rl/PickPlace-v0"
    kwargs: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, list[Any]] = field(default_factory=dict)
    wrappers: list[Any] = field(default_factory=list)
    observation: Any = None
    import_module: Optional[str] = None  # noqa: UP045 - OmegaConf on Python 3.10 wants the long form
    num_envs: int = 80
    workers: Any = False
    ray: RayConfig = field(default_factory=RayConfig)
    keep_tasks: Optional[int] = None  # noqa: UP045
    timeout: float = 120.0
    chunk_length: int = 8
    max_chunks: Optional[int] = None  # noqa: UP045
    gripper_index: Optional[int] = -1  # noqa: UP045
    close_above: float = 0.0
    close_below: Optional[float] = None  # noqa: UP045
    closed: Optional[str] = None  # noqa: UP045
    labeller: Optional[str] = None  # noqa: UP045
    labeller_kwargs: dict[str, Any] = field(default_factory=dict)
    init_state: str = "option"
    same_starts: bool = True
    success: Optional[str] = None  # noqa: UP045
    reward: str = "sum"
    num_states: Optional[int] = None  # noqa: UP045
    eval_states: int = 256
    images: Optional[dict[str, Any]] = None  # noqa: UP045

    def __post_init__(self) -> None:
        at_least(1, self, "num_envs", "chunk_length", "eval_states", "max_chunks", "keep_tasks", "num_states")
        positive(self, "timeout")
        finite(self, "close_above", "close_below")
        if self.num_states is not None and not self.eval_states < self.num_states:
            raise ConfigError(
                f"eval_states must be below num_states={self.num_states}, so that some are left for training; "
                f"got {self.eval_states}"
            )
        self._check_workers()
        one_of(self, "init_state", ("option", "seed"))
        one_of(self, "reward", ("sum", "success"))
        _check_plugin("labeller", self.labeller)
        _check_plugin("closed", self.closed)
        if self.labeller_kwargs and self.labeller is None:
            raise ConfigError(f"labeller_kwargs are given without a labeller, got {dict(self.labeller_kwargs)}")
        self._check_gripper()
        for entry in self.wrappers:
            _check_wrapper(entry)
        _check_parts(self.observation)
        if (prepare := (self.images or {}).get("prepare", "openvla")) not in PREPARATIONS:
            raise ConfigError(f"images.prepare must be one of {', '.join(PREPARATIONS)}, got {prepare!r}")
        if twice := sorted(set(self.kwargs) & set(self.tasks)):
            raise ConfigError(f"{', '.join(twice)} stands in kwargs and in tasks; give it in one of them")
        lengths = {key: len(values) for key, values in self.tasks.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise ConfigError(f"tasks must give every argument as many values, at least one, got {lengths}")
        if self.num_tasks > 1 and self.num_states is None:
            raise ConfigError("several tasks need num_states, the number of initial states a task")

    def _check_workers(self) -> None:
        if not (isinstance(self.workers, bool) or self.workers == "ray"):
            raise ConfigError(f"env.workers must be true, false or ray, got {self.workers!r}")

    def _check_gripper(self) -> None:
        given = [
            f"{name}={value}"
            for name, value, default in (
                ("closed", self.closed, None),
                ("close_below", self.close_below, None),
                ("close_above", self.close_above, 0.0),
            )
            if value != default
        ]
        if len(given) > 1:
            raise ConfigError(f"one rule says what closes the gripper, got {' and '.join(given)}; give one of them")
        if self.gripper_index is not None:
            return
        if self.close_below is not None or self.close_above != 0.0:
            raise ConfigError(f"{given[0]} is of a gripper, and gripper_index=null says that there is none")
        if self.labeller is None and self.closed is None:
            raise ConfigError(
                "gripper_index=null says that there is no gripper, and phases are read off the gripper; give "
                f"env.labeller=module:function, such as {_LABELLERS}"
            )

    @property
    def wrapper_calls(self) -> list[tuple[str, dict[str, Any]]]:
        """``module:Class`` and keyword arguments of every wrapper, the innermost first."""
        return [
            (entry, {}) if isinstance(entry, str) else (entry["name"], dict(entry.get("kwargs") or {}))
            for entry in self.wrappers
        ]

    @property
    def slots(self) -> int:
        """Chunk slots of a full episode: ``max_chunks``, 64 where it is not known."""
        return 64 if self.max_chunks is None else self.max_chunks

    @property
    def num_tasks(self) -> int:
        """T, 1 where no ``tasks`` are given."""
        return max((len(values) for values in self.tasks.values()), default=1)

    def task_kwargs(self, task: int) -> dict[str, Any]:
        """Keyword arguments of the environment of task ``task``."""
        return {**self.kwargs, **{key: values[task] for key, values in self.tasks.items()}}


def _check_plugin(key: str, name: str | None) -> None:
    if name is not None and name.count(":") != 1:
        raise ConfigError(f"{key} must be module:function, got {name!r}")


def _check_wrapper(entry: Any) -> None:
    named = {"name": entry} if isinstance(entry, str) else entry
    fits = isinstance(named, Mapping) and "name" in named and set(named) <= {"name", "kwargs"}
    if not fits or not isinstance(named["name"], str) or not is_plugin(named["name"]):
        raise ConfigError(
            f"wrappers must be a list of module:Class or {{name: module:Class, kwargs: {{...}}}}, got {entry!r} in it"
        )
    if not isinstance(named.get("kwargs") or {}, Mapping):
        raise ConfigError(f"wrappers: kwargs of {named['name']} must be a mapping, got {named['kwargs']!r}")


def _check_parts(observation: Any) -> None:
    given = list(observation.values()) if isinstance(observation, Mapping) else [observation]
    named = [name for part in given for name in (part if isinstance(part, list) else [part])]
    top_level = observation is None or isinstance(observation, list | Mapping)
    if not top_level or (observation is not None and not (named and all(isinstance(name, str) for name in named))):
        raise ConfigError(
            "observation must be a list of parts, such as [observation, desired_goal], or a mapping of new names to "
            f"them, such as {{image: pixels.top}}, got {observation!r}"
        )


@dataclass(frozen=True)
class DemoConfig:
    """Demonstrations of the scripted expert.

    Attributes:
        expert: ``module:function``, called as ``function(env)``, or ``function(env, mistakes=...)`` where it has that
            parameter; gives an object with ``reset(init_state)`` and ``action(observation)``. None takes the built-in
            expert of ``env.id``.
        path: Dataset file; recorded there if missing. None keeps it in memory. A folder is a LeRobot data set, which is
            read.
        features: Features of a LeRobot data set whose names differ from the environment's: its part, or ``action``, and
            the feature, such as ``{wrist_image: observation.images.image2}``.
        episodes: Number of successful demonstrations a task.
        noise: Standard deviation of the noise on executed actions, where half the width of the action box is 1; the
            labels stay clean, and so does the gripper's command.
        mistakes: Share of demonstrations with a deliberate mis-grasp and recovery, where the expert has them.
    """

    SECTION: ClassVar[str] = "demos."

    expert: Optional[str] = None  # noqa: UP045
    path: Optional[str] = None  # noqa: UP045
    features: dict[str, str] = field(default_factory=dict)
    episodes: int = 30
    noise: float = 0.2
    mistakes: float = 0.3

    def __post_init__(self) -> None:
        _check_plugin("expert", self.expert)
        at_least(1, self, "episodes")
        at_least(0.0, self, "noise")
        within(0.0, 1.0, self, "mistakes")
