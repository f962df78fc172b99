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

from sbiflow.optional import deferred

extmath = deferred("sklearn.utils.extmath")

_FARTHEST = 1e6  # standard deviations
_EXACT = 1024  # rows or columns up to which a full SVD takes at most seconds
_AXES_NUMBERS = 2**26  # that axes are computed from: half a gigabyte
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


def principal_axes(centred: Tensor, count: int) -> Tensor:
    """Leading right-singular vectors of a centred matrix (n, p), as columns (p, min(count, n, p)), float64.

    Exact up to 1,024 rows or columns. Above, by random projection and two power iterations in float32 (Halko,
    Martinsson & Tropp 2011, arXiv 0909.4061), which costs n p count instead of n p min(n, p): as good as the best
    subspace where the spectrum falls, some of the equally good directions where it is flat. Orthonormal either way.
    """
    count = min(count, *centred.shape)
    if min(centred.shape) <= max(_EXACT, 2 * count):
        tall = len(centred) >= centred.shape[1]  # LAPACK takes several times as long for a wide matrix
        left, _, right = torch.linalg.svd(
            centred.double() if tall else centred.double().T, full_matrices=False
        )
        return right[:count].T if tall else left[:, :count]
    right = extmath.randomized_svd(
        centred.float().numpy(), count, n_iter=2, power_iteration_normalizer="QR", random_state=0
    )[2]
    return torch.linalg.qr(torch.from_numpy(right.T.astype("f8")))[0]


def thinned(x: Tensor) -> Tensor:
    """Evenly spaced rows of x (n, *x_shape), as many as axes can be computed from in seconds and a gigabyte."""
    most = max(_AXES_NUMBERS // max(x[0].numel(), 1), _EXACT)  # an unconditional flow's x is empty
    return x[:: -(-len(x) // most)]


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
        signal, x = thinned(signal), thinned(x)
        self.standardize.fit(x)
        if self.project is not None:
            clean = self.standardize(signal).reshape(len(signal), -1).double()
            basis = clean.new_zeros(self.project.weight.shape)
            axes = principal_axes(clean.sub_(clean.mean(0)), len(basis))
            basis[: axes.shape[1]] = axes.T
            spread = (self.standardize(x).reshape(len(x), -1) @ basis.T.to(x.dtype)).double().std(0)
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
