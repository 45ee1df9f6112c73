import pytest
import torch
from gymnasium import spaces

from pcm_rl.config import Config, ConfigError, EnvConfig, LoraConfig, OpenVLAConfig, PolicyConfig, save_config
from pcm_rl.evals.export import export_run
from pcm_rl.policies.openvla import add_lora, load_model, open_checkpoint, quantize_language
from pcm_rl.policies.openvla.lora import lora_layers, trainable
from pcm_rl.training.build import policy_for
from pcm_rl.training.checkpoint import load_policy, save_policy

pytest.importorskip("bitsandbytes")
TEXTS = ["pick up the soup", "put it down"]


def test_only_the_language_models_layers_are_rounded(make_openvla, record_openvla):
    policy, exact = make_openvla(), make_openvla()
    names = quantize_language(policy.model, compute_dtype=torch.float32)
    layers = len(exact.model.language_model.model.layers)
    assert len(names) == 7 * layers and all(name.startswith("language_model.model.layers.") for name in names)
    own, before = dict(policy.model.named_parameters()), dict(exact.model.named_parameters())
    for name, value in before.items():
        if name.removesuffix(".weight") in names:
            assert own[name].dtype == torch.uint8 and own[name].numel() == value.numel() // 2
        else:
            assert torch.equal(own[name], value)
    rows = record_openvla(exact, TEXTS)
    near, true = (one.get_dist(rows).logits for one in (policy, exact))
    assert 0 < (near - true).abs().mean() < 0.2 * true.std()


def test_adapters_learn_on_rounded_weights(make_openvla, record_openvla):
    policy = make_openvla()
    quantize_language(policy.model, compute_dtype=torch.float32)
    names = add_lora(policy.model, rank=4)
    assert set(names) == set(lora_layers(policy.model))
    rows = record_openvla(policy, TEXTS)
    policy.get_dist(rows).log_prob(rows["vla_action", "tokens"]).sum().backward()
    gradients = [p.grad for name, p in policy.model.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_a_policy_file_has_the_adapters_alone_and_export_adds_them_to_the_exact_weights(openvla_folder, tmp_path):
    section = OpenVLAConfig(checkpoint=str(openvla_folder), quantize="nf4", lora=LoraConfig(rank=4))
    chosen = PolicyConfig(family="openvla", openvla=section)
    space = spaces.Box(-1.0, 1.0, (2, 7))
    config = Config(env=EnvConfig(id="pcm_rl/Reach-v0", chunk_length=2), policy=chosen)
    policy = policy_for(chosen, None, space, "cpu")
    with torch.no_grad():
        for parameter in trainable(policy):
            parameter.normal_(std=0.02)
    run = tmp_path / "run"
    save_policy(policy, run / "policy.safetensors", {"chunk": "2 7"})
    save_config(config, run / "config.yaml")
    again = policy_for(chosen, None, space, "cpu")
    load_policy(again, run / "policy.safetensors")
    for one, other in zip(trainable(policy), trainable(again), strict=True):
        assert torch.equal(one, other)
    size = (run / "policy.safetensors").stat().st_size
    assert size < 2 * sum(parameter.nbytes for parameter in trainable(policy)) + 20_000

    merged = load_model(open_checkpoint(export_run(run, tmp_path / "merged")), 14, dtype=torch.float32)
    base = load_model(open_checkpoint(openvla_folder), 14, dtype=torch.float32)
    name = "language_model.model.layers.0.self_attn.q_proj"
    delta = lora_layers(policy.model)[name].delta()
    difference = merged.get_submodule(name).weight - base.get_submodule(name).weight
    assert torch.allclose(difference, delta, atol=1e-6)


def test_weights_that_are_trained_are_not_rounded():
    with pytest.raises(ConfigError, match="frozen"):
        OpenVLAConfig(quantize="nf4", lora=LoraConfig(rank=0))
    with pytest.raises(ConfigError, match="nf4"):
        OpenVLAConfig(quantize="int3")
