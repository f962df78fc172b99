"""The joint prior: independent named marginals and their bijection to R^D."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sbiflow.checks import as_tensor, check_count
from sbiflow.priors.distributions import (
    Cosine,
    LogNormal,
    LogUniform,
    Normal,
    PeriodicUniform,
    PowerLaw,
    Sine,
    TruncatedNormal,
    Uniform,
)
from sbiflow.priors.marginal import Marginal

_KINDS: dict[str, type[Marginal]] = {
    kind.__name__: kind
    for kind in (
        Uniform, LogUniform, PowerLaw, Normal, LogNormal, TruncatedNormal, Sine, Cosine, PeriodicUniform,
    )
}  # fmt: skip


@dataclass(frozen=True, init=False)
class Prior:
    """The product of named marginals, and its bijection to R^D (periodic parameters: to a phase).

    >>> prior = Prior(Uniform("B", 0, 5000, "G"), PeriodicUniform("azimuth", 0, 180, "deg"))
    >>> theta, log_jacobian = prior.constrain(torch.zeros(1, 2))
    >>> theta
    tensor([[2500.,   90.]], dtype=torch.float64)
    """

    marginals: tuple[Marginal, ...]

    def __init__(self, *marginals: Marginal | Sequence[Marginal]) -> None:
        flat: list[Any] = []
        for item in marginals:
            flat.extend(item if isinstance(item, Sequence) and not isinstance(item, str) else [item])
        if not flat:
            raise ValueError("prior: expected at least one marginal, got none")
        for item in flat:
            if not isinstance(item, Marginal):
                raise ValueError(f"prior: expected marginals, got {type(item).__name__}")
        names = [marginal.name for marginal in flat]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"prior: expected distinct names, got {', '.join(repeated)} more than once")
        object.__setattr__(self, "marginals", tuple(flat))

    @property
    def dim(self) -> int:
        """Number of parameters, D."""
        return len(self.marginals)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(marginal.name for marginal in self.marginals)

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(marginal.unit for marginal in self.marginals)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels for axes: the marginal's own, or its name."""
        return tuple(marginal.label or marginal.name for marginal in self.marginals)

    @property
    def low(self) -> Tensor:
        """Lower edges (D,), float64."""
        return torch.tensor([marginal.support[0] for marginal in self.marginals], dtype=torch.float64)

    @property
    def high(self) -> Tensor:
        """Upper edges (D,), float64."""
        return torch.tensor([marginal.support[1] for marginal in self.marginals], dtype=torch.float64)

    @property
    def periodic(self) -> Tensor:
        """Which parameters are periodic (D,), bool."""
        return torch.tensor([marginal.periodic for marginal in self.marginals])

    def inside(self, theta: Tensor) -> Tensor:
        """Whether theta (..., D) lies in the support, (...) bool."""
        return torch.stack([m.inside(column) for m, column in self._columns(theta, "theta")], -1).all(-1)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Normalised log-density of theta (..., D), (...); -inf outside."""
        return torch.stack([m.log_prob(column) for m, column in self._columns(theta, "theta")], -1).sum(-1)

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the prior in the space of z (..., D), (...)."""
        return torch.stack([m.base_log_prob(column) for m, column in self._columns(z, "z")], -1).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, D), on the generator's device."""
        device = None if generator is None else generator.device
        shape = (check_count(n, "n", 0), self.dim)
        u = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
        return self.from_uniform(
            u.clamp(min=2.0**-54)
        )  # multiples of 2^-53 below 1: only 0 has to be kept out

    def from_uniform(self, u: Tensor | np.ndarray) -> Tensor:
        """Inverse distribution function of u (..., D) in the open interval (0, 1).

        Raises:
            ValueError: a value is outside (0, 1).
        """
        columns = self._columns(u, "u")
        outside = sum(int((~((column > 0) & (column < 1))).sum()) for _, column in columns)
        if outside:
            raise ValueError(f"u: expected values in the open interval (0, 1), got {outside} outside")
        return torch.stack([_in_blocks(m.from_uniform, column) for m, column in columns], -1)

    def unconstrain(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., D) and log |dz / dtheta| (...) of theta (..., D).

        Raises:
            ValueError: a value is outside the support; names the parameter.
        """
        z = torch.stack([m.to_base(column) for m, column in self._columns(theta, "theta")], -1)
        return z, self.log_prob(theta) - self.base_log_prob(z)

    def constrain(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """theta, inside the support for any finite z (..., D), and log |dtheta / dz| (...)."""
        theta = torch.stack([m.from_base(column) for m, column in self._columns(z, "z")], -1)
        return theta, self.base_log_prob(z) - self.log_prob(theta)

    def covers(self, other: Prior) -> list[str]:
        """[] if the support of `other` is within this one's; otherwise a sentence for each breach."""
        if self.names != other.names:
            return [f"expected the parameters {', '.join(self.names)}, got {', '.join(other.names)}"]
        return [text for pair in zip(self.marginals, other.marginals, strict=True) for text in _excess(*pair)]

    def spec(self) -> list[dict[str, Any]]:
        """A JSON-able description; infinite edges are the strings "inf" and "-inf"."""
        return [_marginal_spec(marginal) for marginal in self.marginals]

    @classmethod
    def from_spec(cls, spec: Sequence[dict[str, Any]]) -> Prior:
        """The prior that `spec` describes.

        Raises:
            ValueError: an unknown kind, a missing or an unknown field.
        """
        return cls(*(_marginal_from_spec(entry) for entry in spec))

    def __str__(self) -> str:
        return self.table()

    def table(self, parameter: str = "parameter", prior: str = "prior") -> str:
        """A line for each marginal under these headings."""
        rows = [(parameter, "unit", prior, "support")]
        rows += [(m.name, m.unit or "-", _describe(m), m.interval) for m in self.marginals]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _columns(self, value: Any, name: str) -> list[tuple[Marginal, Tensor]]:
        tensor = as_tensor(value, name, torch.float64)
        if tensor.ndim == 0 or tensor.shape[-1] != self.dim:
            raise ValueError(f"{name}: expected shape (..., {self.dim}), got {tuple(tensor.shape)}")
        return list(zip(self.marginals, tensor.unbind(-1), strict=True))


def _in_blocks(function: Callable[[Tensor], Tensor], u: Tensor, size: int = 1024) -> Tensor:
    """`function` of u in blocks of one size, so that a value never depends on its place or on the batch.

    Vectorised exp or log may differ in the last bit from the scalar one that does the rest of an array, and a
    store has to hold the same bytes however it was filled.
    """
    if u.numel() == 0:
        return u
    flat = u.reshape(-1)
    blocks = pad(flat, (0, -len(flat) % size), value=0.5).reshape(-1, size)
    return torch.stack([function(block) for block in blocks]).reshape(-1)[: len(flat)].reshape(u.shape)


def _excess(ours: Marginal, theirs: Marginal) -> list[str]:
    found = []
    if ours.unit != theirs.unit:
        found.append(f"{ours.name}: expected the unit {ours.unit or '(none)'}, got {theirs.unit or '(none)'}")
    (low, high), (other_low, other_high) = ours.support, theirs.support
    if other_low < low or other_high > high:
        found.append(
            f"{ours.title}: expected a support within {ours.interval}, got {theirs.interval}, which is wider"
        )
    return found


def _describe(marginal: Marginal) -> str:
    numbers = ", ".join(f"{name}={getattr(marginal, name):.6g}" for name in marginal.parameters())
    return f"{type(marginal).__name__}({numbers})"


def _marginal_spec(marginal: Marginal) -> dict[str, Any]:
    numbers = {name: getattr(marginal, name) for name in marginal.parameters()}
    finite = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
    return {"kind": type(marginal).__name__, "name": marginal.name, **finite,
            "unit": marginal.unit, "label": marginal.label}  # fmt: skip


def _marginal_from_spec(entry: dict[str, Any]) -> Marginal:
    kind = _KINDS.get(entry.get("kind", ""))
    if kind is None:
        raise ValueError(f"prior: expected a kind among {', '.join(_KINDS)}, got {entry.get('kind')!r}")
    given, needed = set(entry) - {"kind"}, {"name", "unit", "label", *kind.parameters()}
    if given != needed:
        raise ValueError(f"prior {kind.__name__}: expected the fields {sorted(needed)}, got {sorted(given)}")
    return kind(**{key: value for key, value in entry.items() if key != "kind"})
