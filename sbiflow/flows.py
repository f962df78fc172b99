"""From a configuration to a conditional flow on the prior's base space.

A flow lives in z = prior.unconstrain(theta): real columns with a standard normal base, periodic columns as phases
with a uniform base. Families differ by their elementwise map and conditioner only; each is one function in
`FAMILIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from nflows.transforms.base import Transform
from torch import Tensor, nn

from sbiflow.embedding import Embedding, EmbeddingConfig
from sbiflow.guess import Guess, WithColumns
from sbiflow.structure import Structure
from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.bounded import wrap
from sbiflow.transforms.composite import Composite, WithContext
from sbiflow.transforms.coupling import Coupling
from sbiflow.transforms.elementwise import Affine, Chain, CircularSpline, Elementwise, Spline, elementwise_for
from sbiflow.transforms.linear import LULinear, Permutation
from sbiflow.transforms.splines import MIN_BIN
from sbiflow.transforms.structure import Known, Spread, known_transform
from sbiflow.transforms.whiten import Whiten

_NOISE_ROWS = {"cpu": 4096}  # drawn at a time: a seed gives the same draws however many are asked for at once
_NOISE_ROWS_GPU = 262_144


@dataclass(frozen=True)
class FlowConfig:
    """Which flow.

    Attributes:
        family: one of `FAMILIES`: "spline_coupling", "spline_autoregressive", "realnvp", "maf".
        layers: number of coupling or autoregressive transforms.
        hidden, blocks: width and residual blocks of every conditioner.
        bins: spline bins.
        half_width: splines act on [-half_width, half_width] of the base space, the identity outside.
        linear: an LU-factorised linear map after every transform.
        start: what the untrained flow is: "regression", the Gaussian posterior of a linear fit to the simulations
            (guess.py), or "prior".
        dropout: share of the conditioners' units dropped while training, against over-fitting few simulations.
        structure: anchors and symmetries of the posterior; `train` takes the simulator's if there is none here.
    """

    family: str = "spline_coupling"
    layers: int = 5
    hidden: int = 64
    blocks: int = 2
    bins: int = 8
    half_width: float = 5.0
    linear: bool = True
    start: str = "regression"
    dropout: float = 0.0
    structure: Structure = field(default_factory=Structure)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"flow family: expected one of {', '.join(FAMILIES)}, got {self.family!r}")
        if self.start not in ("regression", "prior"):
            raise ValueError(f'flow start: expected "regression" or "prior", got {self.start!r}')
        if min(self.layers, self.hidden) < 1 or self.blocks < 0 or not 0 < self.half_width < math.inf:
            raise ValueError(f"flow: expected positive sizes, got {self}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"flow dropout: expected a share in [0, 1), got {self.dropout}")
        if not 2 <= self.bins < 1 / MIN_BIN:
            raise ValueError(
                f"flow: expected at least 2 bins and fewer than {1 / MIN_BIN:.0f}, got {self.bins}"
            )

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> FlowConfig:
        """From what `dataclasses.asdict` made of one, and JSON of that."""
        structure = {"structure": Structure.from_spec(spec["structure"])} if "structure" in spec else {}
        return cls(**(spec | structure))


def _coupling(
    config: FlowConfig, real: Elementwise, periodic: tuple[bool, ...], context: int, layer: int
) -> Transform:
    dim = len(periodic)
    moved = [i for i in range(dim) if (i + layer) % 2 == 0] or list(range(dim))
    own = elementwise_for(real, CircularSpline(config.bins), [periodic[i] for i in moved])
    phases = [i for i in range(dim) if periodic[i]]
    return Coupling(dim, moved, context, own, config.hidden, config.blocks, phases, config.dropout)


def _autoregressive(
    config: FlowConfig, real: Elementwise, periodic: tuple[bool, ...], context: int, layer: int
) -> Transform:
    own = elementwise_for(real, CircularSpline(config.bins), periodic)
    phases = tuple(i for i, flag in enumerate(periodic) if flag)
    return MaskedAutoregressive(
        len(periodic), context, own, config.hidden, config.blocks, phases, config.dropout
    )


def _spline(config: FlowConfig) -> Elementwise:
    """An affine map in front of the spline: posteriors much narrower than the prior are zoomed into first."""
    return Chain(Affine(), Spline(config.bins, config.half_width))


Layer = Callable[[FlowConfig, Elementwise, tuple[bool, ...], int, int], Transform]
FAMILIES: dict[str, tuple[Layer, Callable[[FlowConfig], Elementwise]]] = {
    "spline_coupling": (_coupling, _spline),
    "spline_autoregressive": (_autoregressive, _spline),
    "realnvp": (_coupling, lambda config: Affine()),
    "maf": (_autoregressive, lambda config: Affine()),
}


def build_transform(config: FlowConfig, periodic: tuple[bool, ...], context: int) -> Composite:
    """The flow's transform from z to the base, as an nflows Transform; `context` is C.

    Raises:
        ValueError: a single coupling layer for more than one column, half of which it would leave as the prior.
    """
    dim = len(periodic)
    make_layer, make_elementwise = FAMILIES[config.family]
    if make_layer is _coupling and config.layers < min(dim, 2):
        raise ValueError(
            f"{config.family}: expected at least 2 layers for {dim} parameters, got {config.layers}"
        )
    real = [i for i in range(dim) if not periodic[i]]
    parts: list[Transform] = []
    # A permuted order carries its flags along: `flags` says which columns are phases at this depth.
    flags = tuple(periodic)
    for layer in range(config.layers):
        if make_layer is _autoregressive and layer:
            parts.append(Permutation(range(dim)[::-1]))
            flags = flags[::-1]
        if config.linear and layer and len(real) > 1:
            parts.append(LULinear(dim, [i for i in range(dim) if not flags[i]]))
        parts.append(make_layer(config, make_elementwise(config), flags, context, layer))
    if flags != tuple(periodic):
        parts.append(Permutation(range(dim)[::-1]))
    return Composite(parts)


class ConditionalFlow(nn.Module):
    """q(z | x): embedding, transform and base. Shapes: z (..., D), x (..., *x_shape) broadcasting against it."""

    phase: Tensor

    def __init__(
        self,
        config: FlowConfig,
        embedding: EmbeddingConfig,
        periodic: tuple[bool, ...],
        x_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.dim, self.periodic, self.has_dropout = len(periodic), periodic, config.dropout > 0
        structure = config.structure
        structure.check(periodic, math.prod(x_shape))
        real = [i for i in range(self.dim) if not periodic[i]]
        own = Embedding(embedding, x_shape)
        guided = config.start == "regression" and bool(real)
        learned = Guess(own, len(real)) if guided else own
        self.whiten = [Whiten(self.dim, real)] if guided else []
        flow = Composite([*self.whiten, *build_transform(config, periodic, learned.features).transforms])
        self.known: Known | None = known_transform(structure, periodic)
        self.spread = Spread(structure, self.dim) if structure.has_symmetry else None
        # An autoregressive inverse bounds its own memory, and its many small steps cost less for more draws at once.
        bounded = FAMILIES[config.family][0] is _autoregressive and self.spread is None
        self.chunks_at_once = 4 if bounded else 1
        self.embedding: Embedding | Guess | WithColumns = learned
        self.transform = flow
        if self.known is not None:
            self.embedding = WithColumns(learned, self.known.columns)
            own_context, rest = slice(learned.features), slice(learned.features, None)
            self.transform = Composite([WithContext(self.known, rest), WithContext(flow, own_context)])
        self.register_buffer("phase", torch.tensor(periodic), persistent=False)

    def fit(self, z: Tensor, x: Tensor, signal: Tensor) -> None:
        """Fit what is not trained by gradients: z (n, D), noisy x and noise-free signal (n, *x_shape)."""
        whole = self.embedding
        learned = whole.inner if isinstance(whole, WithColumns) else whole
        if isinstance(whole, WithColumns) and isinstance(self.known, Known):
            z = self.known.forward(z, whole.select(x))[0]
        learned.fit(x, signal)
        if isinstance(learned, Guess):
            (whiten,) = self.whiten
            whiten.fit(learned.regress(x, z[:, whiten.columns.cpu()]))

    def base_log_prob(self, u: Tensor) -> Tensor:
        """Standard normal per real column, uniform per phase; (..., D) -> (...)."""
        normal = -0.5 * (u * u + math.log(2 * math.pi))
        uniform = torch.full_like(u, -math.log(2 * math.pi))
        return torch.where(self.phase, uniform, normal).sum(-1)

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """log q(z | x), (...)."""
        return self.log_prob_given(z, self.embedding(x))

    def log_prob_given(self, z: Tensor, context: Tensor) -> Tensor:
        """The same from contexts (..., C)."""
        u, logdet = self.transform(z, context)
        return self.base_log_prob(u) + logdet

    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """x (B, *x_shape) -> z (n, B, D), log q (n, B); the embedding is computed once per observation."""
        return self.draw(self.embedding(x), n, generator)

    def draw(self, context: Tensor, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The same from contexts (B, C)."""
        step = max(_NOISE_ROWS.get(context.device.type, _NOISE_ROWS_GPU) // max(len(context), 1), 1)
        steps = [min(step, n - start) for start in range(0, n, step)]
        base = torch.cat([self._noise(context, size, generator) for size in steps or [0]])
        z, logdet = self.transform.inverse(base, context)
        if self.spread is not None:
            z = self.spread(z, generator)
        return z, self.base_log_prob(base) - logdet

    def _noise(self, context: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """n draws of the base for each context, (n, B, D)."""
        shape = (n, len(context), self.dim)
        normal = torch.randn(shape, generator=generator, device=context.device, dtype=context.dtype)
        if not any(self.periodic):
            return normal
        uniform = torch.rand(shape, generator=generator, device=context.device, dtype=context.dtype)
        return torch.where(self.phase, wrap((2 * uniform - 1) * math.pi), normal)
