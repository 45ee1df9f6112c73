"""Many features as few: a fixed random projection of standardised features."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn


class RandomProjection(nn.Module):
    """``[M, F]`` -> ``[M, min(F, K)]``: features as they are, or projected where there are more than K.

    The last hidden layer of a 7B policy has 4096 numbers, of which a critic remembers the rows of hundreds of rollouts.
    Inner products survive a random projection (Johnson and Lindenstrauss 1984) if no feature dwarfs the others, so
    they are standardised first, once and for all, by the first batch.

    Args:
        feature_dim: F.
        most: K.
        seed: Of the matrix, which is made anew and not saved.
    """

    mean: Tensor
    std: Tensor
    matrix: Tensor

    def __init__(self, feature_dim: int, most: int, seed: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.out_dim = min(feature_dim, most)
        if feature_dim > most:
            generator = Generator().manual_seed(seed)
            matrix = torch.randn(feature_dim, most, generator=generator) / feature_dim**0.5
            self.register_buffer("matrix", matrix, persistent=False)
            self.register_buffer("mean", torch.zeros(feature_dim))
            self.register_buffer("std", torch.ones(feature_dim))

    def standardise(self, features: Tensor) -> None:
        """Take mean and standard deviation of ``features [M, F]``."""
        if self.out_dim < self.feature_dim:
            self.mean.copy_(features.mean(0))
            self.std.copy_(floored(features.std(0, correction=0)))

    def forward(self, features: Tensor) -> Tensor:
        """Project."""
        if self.out_dim == self.feature_dim:
            return features
        return ((features - self.mean) / self.std).clamp(-5.0, 5.0) @ self.matrix


def floored(std: Tensor) -> Tensor:
    """At least a tenth of the median of those above 0: what hardly ever changes is not blown up."""
    some = std[std > 0]
    return std.clamp_min(0.1 * float(some.median())) if len(some) else torch.ones_like(std)
