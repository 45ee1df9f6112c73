"""Configuration of a run: what can be set, its checks, and files of it."""

from pcm_rl.config.checks import ConfigError
from pcm_rl.config.cluster import RayConfig
from pcm_rl.config.environment import DemoConfig, EnvConfig
from pcm_rl.config.files import config_keys, config_text, load_config, load_run_config, save_config
from pcm_rl.config.learning import AdvantageConfig, SelectionConfig, SFTConfig, UpdateConfig
from pcm_rl.config.methods import METHODS, SET_BY_METHODS, Method
from pcm_rl.config.policy import (
    DRAW_NUMBERS,
    FAMILIES,
    LoraConfig,
    OpenVLAConfig,
    PolicyConfig,
    StateConfig,
    StateFlowConfig,
)
from pcm_rl.config.rollouts import RolloutConfig
from pcm_rl.config.schema import Config
from pcm_rl.config.written import as_written, differences

__all__ = [
    "DRAW_NUMBERS",
    "FAMILIES",
    "METHODS",
    "SET_BY_METHODS",
    "AdvantageConfig",
    "Config",
    "ConfigError",
    "DemoConfig",
    "EnvConfig",
    "LoraConfig",
    "Method",
    "OpenVLAConfig",
    "PolicyConfig",
    "RayConfig",
    "RolloutConfig",
    "SFTConfig",
    "SelectionConfig",
    "StateConfig",
    "StateFlowConfig",
    "UpdateConfig",
    "as_written",
    "config_keys",
    "config_text",
    "differences",
    "load_config",
    "load_run_config",
    "save_config",
]
