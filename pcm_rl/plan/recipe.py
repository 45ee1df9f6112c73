"""Figures of a plan from a recipe: counts of OpenVLA on a card, and LIBERO's simulators."""

from __future__ import annotations

from dataclasses import replace

from pcm_rl.config import Config, ConfigError
from pcm_rl.plan.costs import Costs, costs_of
from pcm_rl.plan.figures import CARDS, MEASURED, Card, Episodes, Network, Simulators
from pcm_rl.plan.options import Given, changed

TOKENS = 345  # of a chunk with the default prompt: 256 patches, 34 ids of the prompt, 56 actions less one
MERGED_GB = 13.0  # a second copy of the weights that have adapters
NF4_GB = 4.5
KNOWN = "Libero"


def recipe_costs(config: Config, name: str, given: Given) -> tuple[Costs, str]:
    """What the policy takes on a card.

    Args:
        config: The recipe.
        name: Of the card, a key of :data:`~pcm_rl.plan.figures.CARDS`.
        given: Figures of the user's own.

    Returns:
        The costs, and a sentence that says where they are from.

    Raises:
        ConfigError: The policy is another family's and its figures are not given, or it does not fit into the card.
    """
    _refuse_other_family(config, given)
    card, network = _card_of(config, name), _network_of(config)
    card, network = changed(card, given), changed(network, given)
    needed = network.weights_gb + MERGED_GB
    if config.policy.openvla.lora.merge and needed > card.memory_gb:
        raise ConfigError(
            f"policy.openvla.lora.merge=true needs {needed:g} GB for two copies of the weights, and card.memory_gb="
            f"{card.memory_gb:g}; leave it out"
        )
    costs = costs_of(card, network, recompute={"always": True, "never": False}.get(config.policy.checkpointing))
    if given["card"] or given["network"] or given["costs"]:
        whose = f"{name} with figures of your own"
    elif name == MEASURED:
        whose = f"{name}: shares of its peak and seconds of a call were measured"
    else:
        whose = f"{name}: its peak, memory and bandwidth are published, shares and seconds of a call those of an H200"
    how = "blocks are computed again in the backward pass" if costs.recomputes else "nothing is computed again"
    nf4 = "; what nf4 costs in time was not measured" if config.policy.openvla.quantize else ""
    scene = "" if "chunk_s" in given["simulators"] else "; a chunk of LIBERO was measured with two cameras, in software"
    return costs, f"card {whose}; operations were counted, {how}{nf4}{scene}"


def recipe_simulators(config: Config, given: Given) -> Simulators:
    """Those of a recipe; environments in one process are stepped one after the other, then all are decided for.

    Raises:
        ConfigError: Seconds of a chunk are needed and not known.
    """
    if KNOWN not in config.env.id and "chunk_s" not in given["simulators"]:
        raise ConfigError(
            f"env.id={config.env.id}: a plan knows the seconds of LIBERO's chunks only; give simulators.chunk_s=..., "
            "or --from RUN of a short run"
        )
    number = config.env.num_envs
    if config.env.workers:
        rollouts = config.rollouts
        return Simulators(workers=number, decisions=rollouts.decisions, decision_wait=rollouts.decision_wait)
    return Simulators(workers=number, cores=1, in_step=True)


def recipe_episodes(config: Config) -> Episodes:
    """Failures have all slots, successes 18 chunks or as many as there are."""
    slots = float(slots_of(config))
    return Episodes(success_chunks=min(Episodes.success_chunks, slots), failure_chunks=slots)


def slots_of(config: Config) -> int:
    """Chunks of a full episode, as far as the configuration tells."""
    horizon = config.env.kwargs.get("horizon")
    if config.env.max_chunks is None and isinstance(horizon, int):
        return -(-horizon // config.env.chunk_length)
    return config.env.slots


def _refuse_other_family(config: Config, given: Given) -> None:
    known = {"network": {"decision_tflop", "update_tflop"}, "costs": {"decision_row_s", "update_row_s"}}
    own = any(needed <= set(given[section]) for section, needed in known.items())
    if config.policy.family != "openvla" and not own:
        raise ConfigError(
            f"policy.family={config.policy.family}: the counts of a plan are OpenVLA's; give --from RUN of a short "
            "run, or costs.decision_row_s=... costs.update_row_s=..."
        )


def _card_of(config: Config, name: str) -> Card:
    """Merged adapters make a decision cheaper: both constants were measured without any."""
    card = CARDS[name]
    return replace(card, decision_call_s=0.020, decision_share=0.63) if config.policy.openvla.lora.merge else card


def _network_of(config: Config) -> Network:
    network, update = Network(), config.update
    if config.policy.openvla.quantize == "nf4":
        network = replace(network, weights_gb=NF4_GB)
    if update.micro_rows is not None:
        return replace(network, micro_rows=update.micro_rows)
    if update.micro_tokens is not None:
        return replace(network, micro_rows=max(update.micro_tokens // TOKENS, 1))
    return network
