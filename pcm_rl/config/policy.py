"""Configuration of the policy, a section for each family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from pcm_rl.config.checks import ConfigError, at_least, one_of


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
