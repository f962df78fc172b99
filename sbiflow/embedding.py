"""From an observation to a context: standardisation, then a trainable network.

Every embedding maps x (..., *x_shape) to (..., features). The standardiser is fitted on the training part only and
is part of the model, so a saved model takes raw observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

_FARTHEST = 1e6  # standard deviations
KINDS = ("residual", "mlp", "cnn", "none")


@dataclass(frozen=True)
class EmbeddingConfig:
    """How x becomes the context.

    Attributes:
        kind: "residual" or "mlp" on the flattened x; "cnn" for x of shape (channels, length) or (length,); "none"
            passes the standardised x on.
        features: C, size of the context (ignored by "none").
        hidden, blocks: width and depth.
        svd_components: if > 0, x is first projected on the leading right-singular vectors of the training signals;
            the projection is trained on from there.
    """

    kind: str = "residual"
    features: int = 64
    hidden: int = 128
    blocks: int = 3
    svd_components: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"embedding kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if min(self.features, self.hidden) < 1 or min(self.blocks, self.svd_components) < 0:
            raise ValueError(f"embedding: expected positive sizes, got {self}")


class Standardize(nn.Module):
    """(x - mean) / scale per feature; a feature that does not vary keeps scale 1, so it becomes exactly 0."""

    mean: Tensor
    scale: Tensor

    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(x_shape))
        self.register_buffer("scale", torch.ones(x_shape))

    def fit(self, x: Tensor) -> None:
        """Fit on x (n, *x_shape), accumulated in float64."""
        mean = x.double().mean(0)
        deviation = (x.double() - mean).square().mean(0).sqrt()
        rounding = 1e-6 * mean.abs()  # float32 spread of a constant
        constant = deviation <= rounding
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, torch.ones_like(deviation), deviation))

    def forward(self, x: Tensor) -> Tensor:
        # No simulation is a million deviations out; an observation there must not overflow and become NaN draws.
        return ((x - self.mean) / self.scale).clamp(-_FARTHEST, _FARTHEST)


class ResidualPerceptron(nn.Module):
    """(..., inputs) -> (..., features)."""

    def __init__(self, inputs: int, config: EmbeddingConfig) -> None:
        super().__init__()
        self.entry = nn.Linear(inputs, config.hidden)
        self.first = nn.ModuleList(nn.Linear(config.hidden, config.hidden) for _ in range(config.blocks))
        self.second = nn.ModuleList(nn.Linear(config.hidden, config.hidden) for _ in range(config.blocks))
        self.exit = nn.Linear(config.hidden, config.features)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.entry(x)
        for first, second in zip(self.first, self.second, strict=True):
            hidden = hidden + second(silu(first(silu(hidden))))
        return self.exit(silu(hidden))


def perceptron(inputs: int, config: EmbeddingConfig) -> nn.Sequential:
    """Plain MLP, (..., inputs) -> (..., features)."""
    widths = [inputs, *[config.hidden] * (config.blocks + 1)]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(config.hidden, config.features))


class Convolutional(nn.Module):
    """1-D CNN over the last axis, (..., channels, length) -> (..., features); halves the length per block."""

    def __init__(self, channels: int, length: int, config: EmbeddingConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = config.hidden // 4 or 1
        for _ in range(config.blocks):
            layers += [nn.Conv1d(channels, width, 5, padding=2), nn.SiLU()]
            layers += [nn.Conv1d(width, width, 3, stride=2, padding=1), nn.SiLU()]
            channels, length = width, (length + 1) // 2
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(channels * length, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.features)
        )

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-2]
        hidden = self.layers(x.reshape(-1, *x.shape[-2:])).flatten(1)
        return self.head(hidden).reshape(*lead, self.head[-1].out_features)


class Embedding(nn.Module):
    """Standardise, optionally project, embed: x (..., *x_shape) -> context (..., features)."""

    def __init__(self, config: EmbeddingConfig, x_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.x_shape = x_shape
        self.standardize = Standardize(x_shape)
        size = math.prod(x_shape)
        components = min(config.svd_components, size)
        self.project = nn.Linear(size, components) if components else None
        self.as_image = config.kind == "cnn"
        self.features = config.features
        if config.kind == "none":
            self.net: nn.Module = nn.Identity()
            self.features = components or size
        elif config.kind == "cnn":
            if components or len(x_shape) not in (1, 2):
                raise ValueError(
                    f"cnn embedding: expected x (channels, length) or (length,) and no SVD, got {x_shape}"
                )
            self.net = Convolutional(x_shape[0] if len(x_shape) == 2 else 1, x_shape[-1], config)
        else:
            build = ResidualPerceptron if config.kind == "residual" else perceptron
            self.net = build(components or size, config)

    def fit(self, x: Tensor, signal: Tensor) -> None:
        """Fit the standardiser on noisy x and the projection on noise-free signals, both (n, *x_shape)."""
        self.standardize.fit(x)
        if self.project is not None:
            clean = self.standardize(signal).reshape(len(signal), -1).double()
            noisy = self.standardize(x).reshape(len(x), -1).double()
            _, _, right = torch.linalg.svd(clean - clean.mean(0), full_matrices=False)
            basis = clean.new_zeros(self.project.weight.shape)
            count = min(len(basis), len(right))
            basis[:count] = right[:count]
            spread = (noisy @ basis.T).std(0)
            # a direction that does not vary, such as a constant feature's, keeps scale 1 as in Standardize
            spread = torch.where(spread > 1e-6 * spread.max(), spread, torch.ones_like(spread))
            with torch.no_grad():
                self.project.weight.copy_(basis / spread[:, None])
                self.project.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.standardize(x)
        if self.as_image:
            return self.net(x if len(self.x_shape) == 2 else x[..., None, :])
        x = x.flatten(-len(self.x_shape)) if self.x_shape else x[..., None]
        return self.net(x if self.project is None else self.project(x))
