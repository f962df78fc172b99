"""Sylvester flows: many planar steps at once, in directions at right angles."""

from __future__ import annotations

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.householder import Reflections, reflect
from sbiflow.transforms.matrices import Triangle, multiply
from sbiflow.transforms.monotone import bell, log_derivative, positive, solve_tanh
from sbiflow.transforms.parameters import Parameters
from sbiflow.transforms.splines import soft_clamp

_LIMIT = 3.0  # of V, and of log V on its diagonal


class Sylvester(Transform):
    """y = z + Q R tanh(V Q'z + b) (van den Berg et al. 2018, arXiv 1803.05649, theorems 1 and 2; V is their R~).

    Q (D, M) are the first M columns of a product of Householder reflections, R and V (M, M) upper triangular. The
    log-det is the sum of log(1 + R_ii V_ii tanh'(s_i)) with s = V Q'z + b. The map is invertible where R_ii V_ii > -1:
    V_ii > 0 (the sign of row i of V, b_i and column i of R together changes nothing) and R_ii = (a_i - 1) / V_ii with
    a slope a_i > 1e-3. The authors bound both diagonals by tanh, so their a_i is below two; here it is not.
    Entries of V beside its diagonal are within ±3, those on it within e^±3: it has to be inverted in floats.

    All parameters come from the context, or are learned where C = 0. Inputs (..., D). Starts as the identity, R = 0.

    The inverse, in v = Q'z: the last row of y' = v + R tanh(V v + b) is a scalar equation for v_M, and each row before
    it one more, given those after it (`monotone.solve_tanh`).

    Args:
        dim: D.
        units: M, D if not given.
        reflections: their even number, by default enough for any rotation.

    Raises:
        ValueError: units outside of 1..D, or an odd number of reflections.
    """

    def __init__(
        self,
        dim: int,
        context: int = 0,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        units: int | None = None,
        reflections: int | None = None,
    ) -> None:
        super().__init__()
        self.units = dim if units is None else units
        if not 1 <= self.units <= dim:
            raise ValueError(f"units: expected between 1 and {dim}, got {units}")
        self.reflections = Reflections(dim, reflections)
        self.triangle = Triangle(self.units, upper=True)
        self.sizes = [*[self.units] * 3, *[self.triangle.entries] * 2, self.reflections.size]
        self.params = Parameters(sum(self.sizes), context, hidden, blocks, dropout)

    def _settings(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """R, V (..., M, M), b, slopes a (..., M), vectors (..., K, D)."""
        shift, raw_slope, raw_diagonal, outer, inner, numbers = self.params(context).split(self.sizes, -1)
        slope, log_diagonal = positive(raw_slope), soft_clamp(raw_diagonal, _LIMIT)
        last = self.triangle(outer, (slope - 1) * torch.exp(-log_diagonal))
        first = self.triangle(soft_clamp(inner, _LIMIT), torch.exp(log_diagonal))
        return last, first, shift, slope, self.reflections(numbers)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        last, first, shift, slope, vectors = self._settings(context)
        turned = reflect(vectors, inputs, inverse=True)
        part, rest = turned.tensor_split([self.units], -1)
        s = multiply(first, part) + shift
        part = part + multiply(last, torch.tanh(s))
        outputs = reflect(vectors, torch.cat([part, rest], -1))
        return outputs, log_derivative(slope, *bell(s)).sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        last, first, shift, slope, vectors = self._settings(context)
        turned = reflect(vectors, inputs, inverse=True)
        part, rest = turned.tensor_split([self.units], -1)
        part, s = _back_substitute(part, last, first, shift, slope)
        outputs = reflect(vectors, torch.cat([part, rest], -1))
        return outputs, -log_derivative(slope, *bell(s)).sum(-1)


def _back_substitute(
    part: Tensor, last: Tensor, first: Tensor, shift: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """v and s = V v + b, (..., M) each, of v + R tanh(V v + b) = part."""
    solved, arguments = [], []
    for i in reversed(range(part.shape[-1])):
        own = part[..., i]
        s = solve_tanh(first[..., i, i] * own + shift[..., i], slope[..., i])
        step = torch.tanh(s)[..., None]
        value = own[..., None] - last[..., i, i, None] * step
        # what this row takes from, and gives to, those before it
        part, shift = part[..., :i] - last[..., :i, i] * step, shift[..., :i] + first[..., :i, i] * value
        solved.append(value)
        arguments.append(s[..., None])
    return torch.cat(solved[::-1], -1), torch.cat(arguments[::-1], -1)
