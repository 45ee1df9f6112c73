"""Configuration of a run: frozen dataclasses with a default for every field, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from pcm_rl.config.checks import ConfigError, at_least, one_of
from pcm_rl.config.methods import METHODS, Method
from pcm_rl.selection import PADDINGS, SELECTIONS


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
class LoraConfig:
    """Adapters on a frozen OpenVLA.

    Attributes:
        rank: r; 0 trains every weight instead, without adapters.
        alpha: The adapters' output is scaled by alpha / r.
        targets: ``all-linear``, ``language``, or a list of names or ends of names of linear layers.
    """

    rank: int = 32
    alpha: int = 32
    targets: Any = "all-linear"

    def __post_init__(self) -> None:
        at_least(0, self, "rank")


@dataclass(frozen=True)
class PolicyConfig:
    """The token policy: a small one on state observations, or OpenVLA-OFT on images.

    Attributes:
        network: ``mlp`` or ``transformer``.
        width: Hidden width.
        depth: Hidden layers, or transformer blocks.
        num_bins: Bins an action dimension.
        temperature: Divides the logits, in rollout and loss alike.
        init: Policy file (``policy.safetensors`` of a run or of ``pcm-rl sft``) to start from instead of SFT.
        checkpoint: Folder of an OpenVLA-OFT checkpoint with action tokens; the policy is then that model with adapters,
            and ``network``, ``width``, ``depth`` and ``num_bins`` mean nothing.
        statistics: Dataset of the checkpoint whose quantiles scale the actions; None takes the only one.
        dtype: ``float32`` or ``bfloat16``, of the checkpoint's frozen weights; adapters are float32.
        quantize: ``nf4`` keeps the frozen language model in four bits; None leaves it.
        lora: The adapters.
        checkpointing: Compute blocks again in the backward pass instead of keeping them: ``always``, ``never``, or
            ``auto``, which measures a row and does it where a micro-batch would not fit.
        record_features: Record what the vision towers give instead of running them again in the update; only where
            ``lora.targets`` leaves them alone.
        compile: Compile the model's blocks with ``torch.compile``.
    """

    network: str = "mlp"
    width: int = 256
    depth: int = 2
    num_bins: int = 16
    temperature: float = 1.0
    init: Optional[str] = None  # noqa: UP045
    checkpoint: Optional[str] = None  # noqa: UP045
    statistics: Optional[str] = None  # noqa: UP045
    dtype: str = "float32"
    quantize: Optional[str] = None  # noqa: UP045
    lora: LoraConfig = field(default_factory=LoraConfig)
    checkpointing: str = "auto"
    record_features: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        at_least(1, self, "width", "depth")
        at_least(2, self, "num_bins")
        one_of(self, "dtype", ("float32", "bfloat16"))
        one_of(self, "checkpointing", ("auto", "always", "never"))
        if self.quantize is not None:
            one_of(self, "quantize", ("nf4",))
            if not self.lora.rank:
                raise ConfigError("quantize rounds weights that are frozen; give policy.lora.rank of at least 1")
        if self.record_features and self.lora.targets == "all-linear":
            raise ConfigError(
                "record_features keeps the vision towers' output, which all-linear adapters change; set "
                "policy.lora.targets=language"
            )


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


@dataclass(frozen=True)
class SFTConfig:
    """Supervised start.

    Attributes:
        steps: Gradient steps, at most.
        batch_size: Rows a step.
        lr: Adam's learning rate.
        target: Success in [0, 1] on training states at which to stop earlier, so that RL has something to do; None
            does all the steps.
        check_every: Gradient steps between two looks at the success, with ``target``.
        check_episodes: Rollouts of such a look.
    """

    steps: int = 900
    batch_size: int = 256
    lr: float = 1e-3
    target: Optional[float] = None  # noqa: UP045
    check_every: int = 200
    check_episodes: int = 40

    def __post_init__(self) -> None:
        at_least(0, self, "steps")
        at_least(1, self, "batch_size", "check_every", "check_episodes")
        if self.target is not None and not 0.0 < self.target <= 1.0:
            raise ConfigError(f"target must be in (0, 1], got {self.target}")


@dataclass(frozen=True)
class AdvantageConfig:
    """What credit a chunk gets for the outcome.

    Attributes:
        name: ``group``, the outcome relative to the group's (equation 1), or ``critic``, the change of a learned chance
            of success (``pcm_rl.algos.critic``), for environments with a state observation.
        lam: Lambda of the critic's generalised advantage estimate.
        steps: The critic's gradient steps a batch.
        lr: Their learning rate.
    """

    name: str = "group"
    lam: float = 0.8
    steps: int = 200
    lr: float = 1e-3

    def __post_init__(self) -> None:
        one_of(self, "name", ("group", "critic"))
        at_least(1, self, "steps")
        if not 0.0 <= self.lam <= 1.0:
            raise ConfigError(f"lam must be in [0, 1], got {self.lam}")


@dataclass(frozen=True)
class SelectionConfig:
    """Which chunks go through the backward pass.

    Attributes:
        name: ``pcm``, ``random``, ``top-phase``, ``top-advantage`` or ``none`` (full GRPO).
        padding: ``drop``, or ``keep`` for the paper's baseline.
        budget: B, chunks a trajectory.
        floor: ``p_min``.
        refresh_every: ``T_rc``, steps between refreshes of the keep probabilities.
    """

    name: str = "pcm"
    padding: str = "drop"
    budget: int = 12
    floor: float = 0.1
    refresh_every: int = 5

    def __post_init__(self) -> None:
        one_of(self, "name", SELECTIONS)
        one_of(self, "padding", PADDINGS)
        at_least(1, self, "budget", "refresh_every")


@dataclass(frozen=True)
class UpdateConfig:
    """The GRPO update.

    Attributes:
        lr: AdamW's learning rate, constant.
        weight_decay: AdamW's.
        epochs: Passes over a batch.
        minibatches: Optimiser steps a pass.
        micro_rows: Rows in one forward and backward; None takes a whole minibatch. The gradient does not depend on it.
        micro_tokens: Instead, tokens in one forward and backward, of a policy that counts them (OpenVLA): rows are
            packed by length, across trajectories.
        grad_clip: Largest gradient norm.
        clip_low: ``eps_low``.
        clip_high: ``eps_high``.
        entropy_coeff: Weight of the entropy bonus.
        brightness: Images of the update are made brighter or darker by a factor within 1 +- this; 0 leaves them.
        jitter: Likewise their contrast and their saturation.
    """

    lr: float = 3e-4
    weight_decay: float = 0.0
    epochs: int = 1
    minibatches: int = 4
    micro_rows: Optional[int] = None  # noqa: UP045
    micro_tokens: Optional[int] = None  # noqa: UP045
    grad_clip: float = 2.0
    clip_low: float = 0.2
    clip_high: float = 0.4
    entropy_coeff: float = 0.0
    brightness: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, self, "epochs", "minibatches")
        at_least(0.0, self, "brightness", "jitter")
        if self.micro_rows is not None and self.micro_tokens is not None:
            raise ConfigError("micro_rows and micro_tokens both say how large a micro-batch is; give one of them")
        for name in ("micro_rows", "micro_tokens"):
            if getattr(self, name) is not None:
                at_least(1, self, name)


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        seed: Seed of everything random.
        steps: GRPO steps.
        groups: Groups (task and initial state) a step.
        group_size: G, rollouts a group.
        eval_every: Steps between evaluations; 0 evaluates only before and after.
        eval_episodes: Rollouts of an evaluation on the held-out initial states.
        save_every: Steps between checkpoints; 0 saves only at the end.
        run_dir: Folder that holds the runs.
        name: Folder of this run; None makes one from the environment, the method and the seed.
        threads: Torch threads; None leaves torch's choice.
        device: Torch device of the policy and the update; ``cuda`` is with several processes the GPU of each.
        logger: ``tensorboard``, ``wandb``, ``mlflow`` or ``none``; ``metrics.csv`` is always written.
        record: Film a success and a failure for the report, where the environment renders.
        env: The environment.
        policy: The policy.
        demos: Demonstrations.
        sft: Supervised start.
        advantage: Credit of each chunk.
        selection: Chunk selection.
        update: GRPO update.
    """

    seed: int = 0
    steps: int = 60
    groups: int = 8
    group_size: int = 10
    eval_every: int = 10
    eval_episodes: int = 256
    save_every: int = 10
    run_dir: str = "runs"
    name: Optional[str] = None  # noqa: UP045
    threads: Optional[int] = None  # noqa: UP045
    device: str = "cpu"
    logger: str = "tensorboard"
    record: bool = True
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    demos: DemoConfig = field(default_factory=DemoConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)

    def __post_init__(self) -> None:
        at_least(0, self, "steps", "eval_every", "save_every")
        at_least(1, self, "groups", "eval_episodes")
        at_least(2, self, "group_size")
        one_of(self, "logger", ("tensorboard", "wandb", "mlflow", "none"))

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        task = self.env.id.rsplit("/", 1)[-1].split("-v")[0].lower()
        return Path(self.run_dir) / (self.name or f"{task}-{self.method}-seed{self.seed}")

    @property
    def method(self) -> str:
        """Name of selection, padding and advantage in :data:`METHODS`, or all three where they have no name."""
        mine = Method(self.selection.name, self.selection.padding, self.advantage.name)
        return next((name for name, value in METHODS.items() if value == mine), "-".join(mine))
