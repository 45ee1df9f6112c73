"""A check of a loaded OpenVLA before it is used."""

from __future__ import annotations

import torch

from pcm_rl.policies.openvla.policy import OpenVLAPolicy

_TEXT = "do it"


@torch.no_grad()
def check_bidirectional(policy: OpenVLAPolicy) -> None:
    """Change the last token of a sequence and check that the first action token's logits change.

    With a causal mask they would not, and success would fall from 98 to 60 % without any error.

    Raises:
        RuntimeError: If they do not change.
    """
    sizes, device = policy.checkpoint.sizes, policy.mean.device
    pixels = torch.zeros(1, 6 * sizes.num_images, sizes.image_size, sizes.image_size, device=device)
    prompt, length = policy.prompter.batch([_TEXT])
    proprio = torch.zeros(1, sizes.proprio_dim, device=device) if sizes.proprio_dim else None
    with policy.precision():
        features = policy.model.patch_features(pixels.to(policy.dtype))
        embeddings, positions, keep = policy.model.embed(features, prompt.to(device), length, proprio)
        before = policy.model.language_model(embeddings, positions, keep)
        embeddings[:, -1] = embeddings[:, 0] * 2.0
        after = policy.model.language_model(embeddings, positions, keep)
    if torch.equal(before[:, 0], after[:, 0]):
        raise RuntimeError(
            "expected attention in both directions, but the first action token does not see the last token: is a "
            "causal mask in the language model?"
        )
