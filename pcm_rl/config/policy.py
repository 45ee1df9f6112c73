"""Configuration of the policy, a section for each family."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Optional

from pcm_rl.config.checks import ConfigError, at_least, one_of, positive, within
from pcm_rl.support.plugins import is_plugin

FAMILIES: dict[str, str] = {  # what makes a policy of each; see pcm_rl.policies.family
    "state": "pcm_rl.policies.state.family:make_policy",
    "state_flow": "pcm_rl.policies.state_flow.family:make_policy",
    "openvla": "pcm_rl.policies.openvla.family:make_policy",
    "pi0": "pcm_rl.policies.pi0.family:make_policy",
}
DRAW_NUMBERS = ("state_flow", "pi0")  # families of flow policies: their noise is fixed


@dataclass(frozen=True)
class StateConfig:
    """The family ``state``: a small token policy on state observations.

    Attributes:
        network: ``mlp`` or ``transformer``.
        width: Hidden width.
        depth: Hidden layers, or transformer blocks.
        num_bins: Bins an action dimension.
        temperature: Divides the logits, in rollout and loss alike.
    """

    SECTION: ClassVar[str] = "policy.state."

    network: str = "mlp"
    width: int = 256
    depth: int = 2
    num_bins: int = 16
    temperature: float = 1.0

    def __post_init__(self) -> None:
        one_of(self, "network", ("mlp", "transformer"))
        at_least(1, self, "width", "depth")
        at_least(2, self, "num_bins")
        positive(self, "temperature")


@dataclass(frozen=True)
class StateFlowConfig:
    """The family ``state_flow``: a small flow policy on state observations.

    Attributes:
        width: Hidden width.
        depth: Hidden layers of the state's encoder, and as many of the velocity.
        steps: Denoising steps of a decision.
        noise_level: Noise of the one random denoising step of a decision; above 0 (docs/flow.md).
    """

    SECTION: ClassVar[str] = "policy.state_flow."

    width: int = 256
    depth: int = 2
    steps: int = 4
    noise_level: float = 0.5

    def __post_init__(self) -> None:
        at_least(1, self, "width", "depth", "steps")
        noisy(self, "noise_level")


def noisy(config: Any, name: str) -> None:
    """Raise :class:`ConfigError` unless the field ``name``, a noise level, is finite and above 0."""
    try:
        positive(config, name)
    except ConfigError as error:
        raise ConfigError(
            f"{error}: without noise a chunk has no log-prob to learn by. pcm-rl eval RUN --greedy acts without noise"
        ) from error


@dataclass(frozen=True)
class LoraConfig:
    """Adapters on a frozen OpenVLA.

    Attributes:
        rank: r; 0 trains every weight instead, without adapters.
        alpha: The adapters' output is scaled by alpha / r.
        targets: ``all-linear``, ``language``, or a list of names or ends of names of linear layers.
        merge: Roll out with the adapters added to a second copy of the weights: faster decisions for more memory.
            The sum is rounded to ``dtype``, so log-probs are recorded a little beside those of the update.
    """

    SECTION: ClassVar[str] = "policy.openvla.lora."

    rank: int = 32
    alpha: int = 32
    targets: Any = "all-linear"
    merge: bool = False

    def __post_init__(self) -> None:
        at_least(0, self, "rank")
        at_least(1, self, "alpha")
        if self.merge and not self.rank:
            raise ConfigError(
                "policy.openvla.lora.merge adds adapters to the weights, and rank=0 has none; leave it out"
            )


@dataclass(frozen=True)
class OpenVLAConfig:
    """The family ``openvla``: OpenVLA-OFT with action tokens, on images and an instruction.

    Attributes:
        checkpoint: Folder of an OpenVLA-OFT checkpoint with action tokens.
        adapters: Folder of adapters on it to train further, as peft writes it; None begins with fresh ones. Their rank,
            alpha and layers are those of the folder.
        statistics: Dataset of the checkpoint whose quantiles scale the actions; None takes the only one.
        temperature: Divides the logits, in rollout and loss alike.
        dtype: ``float32`` or ``bfloat16``, of the checkpoint's frozen weights; adapters are float32.
        quantize: ``nf4`` keeps the frozen language model in four bits; None leaves it.
        lora: The adapters.
        record_features: Record what the vision towers give instead of running them again in the update; only where
            ``lora.targets`` leaves them alone.
        compile: Compile the model's blocks with ``torch.compile``, for the update alone.
    """

    SECTION: ClassVar[str] = "policy.openvla."

    checkpoint: Optional[str] = None  # noqa: UP045 - OmegaConf on Python 3.10 wants the long form
    adapters: Optional[str] = None  # noqa: UP045
    statistics: Optional[str] = None  # noqa: UP045
    temperature: float = 1.6
    dtype: str = "float32"
    quantize: Optional[str] = None  # noqa: UP045
    lora: LoraConfig = field(default_factory=LoraConfig)
    record_features: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        positive(self, "temperature")
        one_of(self, "dtype", ("float32", "bfloat16"))
        if self.quantize is not None:
            one_of(self, "quantize", ("nf4",))
            if not self.lora.rank:
                raise ConfigError("quantize rounds frozen weights; give policy.openvla.lora.rank of at least 1")
            if self.lora.merge:
                raise ConfigError(
                    "lora.merge adds adapters to weights, and quantize=nf4 has rounded ones; set one of them"
                )
        if self.adapters is not None and replace(self.lora, merge=False) not in (LoraConfig(), LoraConfig(rank=0)):
            raise ConfigError(
                "policy.openvla.lora is of fresh adapters, and those of policy.openvla.adapters have their own rank, "
                "alpha and layers; leave policy.openvla.lora out (rank=0 adds them to the weights and trains all)"
            )
        if self.record_features and self.adapters is None and self.lora.targets == "all-linear":
            raise ConfigError(
                "record_features keeps the vision towers' output, which all-linear adapters change; set "
                "policy.openvla.lora.targets=language"
            )


@dataclass(frozen=True)
class Pi0LoraConfig:
    """Adapters on a frozen pi0.

    Attributes:
        rank: r.
        alpha: The adapters' output is scaled by alpha / r.
        targets: ``expert``, ``vlm``, ``all``, or a list of names or ends of names of linear layers.
    """

    SECTION: ClassVar[str] = "policy.pi0.lora."

    rank: int = 32
    alpha: int = 32
    targets: Any = "expert"

    def __post_init__(self) -> None:
        at_least(1, self, "rank", "alpha")


@dataclass(frozen=True)
class Pi0Config:
    """The family ``pi0``: flow matching on images, a state and an instruction, through ``transformers``.

    Attributes:
        checkpoint: Folder of a pi0 checkpoint, in the layout of transformers or lerobot.
        statistics: JSON file with mean and deviation of states and actions; None takes the checkpoint's.
        cameras: How many it sees, 1 or 2; None takes those that the environment gives.
        steps: Denoising steps; None takes the checkpoint's.
        noise_level: Of the random denoising step; positive.
        train: ``expert``, all but the VLM; ``all``; or ``lora``, adapters.
        lora: The adapters.
        dtype: ``float32`` or ``bfloat16``, of the frozen weights and of what is computed; trained weights are float32.
    """

    SECTION: ClassVar[str] = "policy.pi0."

    checkpoint: Optional[str] = None  # noqa: UP045
    statistics: Optional[str] = None  # noqa: UP045
    cameras: Optional[int] = None  # noqa: UP045
    steps: Optional[int] = None  # noqa: UP045
    noise_level: float = 0.5
    train: str = "expert"
    lora: Pi0LoraConfig = field(default_factory=Pi0LoraConfig)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        within(1, 2, self, "cameras")
        at_least(1, self, "steps")
        noisy(self, "noise_level")
        one_of(self, "train", ("expert", "all", "lora"))
        one_of(self, "dtype", ("float32", "bfloat16"))
        if self.train != "lora" and self.lora != Pi0LoraConfig():
            raise ConfigError(
                f"policy.pi0.lora is set and means nothing for policy.pi0.train={self.train}; give "
                "policy.pi0.train=lora, or leave the section out"
            )


@dataclass(frozen=True)
class PolicyConfig:
    """The policy: its family, and what any family may have.

    Attributes:
        family: ``state``, ``state_flow``, ``openvla``, ``pi0``, or ``module:function`` of a family of one's own (see
            ``pcm_rl.policies.family``).
        state: Settings of the family ``state``.
        state_flow: Settings of the family ``state_flow``.
        openvla: Settings of the family ``openvla``.
        pi0: Settings of the family ``pi0``.
        options: Keyword arguments of a family of one's own.
        init: Policy file (``policy.safetensors`` of a run or of ``pcm-rl sft``) to start from instead of SFT.
        checkpointing: Compute blocks again in the backward pass instead of keeping them, where the policy can:
            ``always``, ``never``, or ``auto``, which measures a row and does it where a micro-batch would not fit.
    """

    SECTION: ClassVar[str] = "policy."

    family: str = "state"
    state: StateConfig = field(default_factory=StateConfig)
    state_flow: StateFlowConfig = field(default_factory=StateFlowConfig)
    openvla: OpenVLAConfig = field(default_factory=OpenVLAConfig)
    pi0: Pi0Config = field(default_factory=Pi0Config)
    options: dict[str, Any] = field(default_factory=dict)
    init: Optional[str] = None  # noqa: UP045
    checkpointing: str = "auto"

    def __post_init__(self) -> None:
        if not is_plugin(self.family):
            one_of(self, "family", tuple(FAMILIES))
        one_of(self, "checkpointing", ("auto", "always", "never"))
        for name in FAMILIES:
            section = getattr(self, name)
            if self.family != name and section != type(section)():
                raise ConfigError(
                    f"policy.{name} is set and means nothing for policy.family={self.family}; set "
                    f"policy.family={name}, or leave the section out"
                )
        if self.options and self.family in FAMILIES:
            raise ConfigError(
                f"policy.options belong to a family of your own; the settings of {self.family} are in "
                f"policy.{self.family}"
            )
