"""Orthogonal maps as products of Householder reflections, alone and in front of a triangular one."""

from __future__ import annotations

import math

import torch
from nflows.transforms.base import Transform
from torch import Tensor, nn

from sbiflow.transforms.matrices import Triangle, multiply, solve
from sbiflow.transforms.parameters import Parameters
from sbiflow.transforms.splines import soft_clamp

_LIMIT = 5.0  # of log S and of T: float64 then inverts any such matrix


class Reflections(nn.Module):
    """Numbers (..., `size`) -> vectors v (..., K, D) of length sqrt 2, of the reflections x - v (v'x).

    A reflection does not know the sign or the length of its vector, so one entry is fixed at 1 and the other D - 1 are
    free: no vector has length zero. The reflections come in pairs, one pair after another with another entry fixed; of
    zeros, both of a pair are the same, and together nothing. D reflections (D - 1 for an odd D) reach every rotation.

    Raises:
        ValueError: K is odd or negative.
    """

    table: Tensor

    def __init__(self, dim: int, count: int | None = None) -> None:
        super().__init__()
        self.dim, self.count = dim, dim - dim % 2 if count is None else count
        if self.count < 0 or self.count % 2:
            raise ValueError(f"reflections: expected an even number, got {count}")
        self.size = self.count * (dim - 1)
        table = torch.full((self.count, dim), self.size)  # where the 1 is
        free = torch.arange(dim) != torch.arange(self.count)[:, None] // 2 % dim
        table[free] = torch.arange(self.size)
        self.register_buffer("table", table.flatten(), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        parts = torch.cat([numbers, numbers.new_ones(*numbers.shape[:-1], 1)], -1)
        vectors = parts.index_select(-1, self.table).unflatten(-1, (self.count, self.dim))
        return vectors * (math.sqrt(2) / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True))


def reflect(vectors: Tensor, rows: Tensor, inverse: bool = False) -> Tensor:
    """Q x for rows x (..., D), Q = H_1 H_2 ... H_K, H_k = I - v_k v_k' (vectors of `Reflections`); or Q' x."""
    each = vectors.unbind(-2)
    for vector in each if inverse else each[::-1]:
        rows = rows - vector * (vector * rows).sum(-1, keepdim=True)
    return rows


class Householder(Transform):
    """y = Q x, Q a product of K reflections (Tomczak & Welling 2016, arXiv 1611.09630): it keeps volumes.

    Inputs (..., D); the K (D - 1) parameters come from the context, or are learned where C = 0; starts as the
    identity.

    Raises:
        ValueError: D < 2, where there is no rotation, or an odd number of reflections.
    """

    def __init__(
        self,
        dim: int,
        context: int = 0,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        reflections: int | None = None,
    ) -> None:
        super().__init__()
        if dim < 2:
            raise ValueError(f"dim: expected at least two columns to rotate, got {dim}")
        self.reflections = Reflections(dim, reflections)
        self.params = Parameters(self.reflections.size, context, hidden, blocks, dropout)

    def _map(self, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        vectors = self.reflections(self.params(context))
        return reflect(vectors, inputs, inverse), inputs.new_zeros(inputs.shape[:-1])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, context, inverse=True)


class QRLinear(Transform):
    """y = Q S T (x - m): a rotation after an upper triangular map (Hoogeboom et al. 2019, arXiv 1901.11137).

    Q as in `Householder`, S diagonal and positive, T upper triangular with a unit diagonal: any matrix with a positive
    determinant, within |log S_ii| < 5 and |T_ij| < 5, which keep it invertible in floats. Inputs (..., D); the
    parameters come from the context, or are learned where C = 0; starts as the identity.
    """

    def __init__(
        self,
        dim: int,
        context: int = 0,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        reflections: int | None = None,
    ) -> None:
        super().__init__()
        self.reflections, self.triangle = Reflections(dim, reflections), Triangle(dim, upper=True)
        self.sizes = [dim, dim, self.triangle.entries, self.reflections.size]
        self.params = Parameters(sum(self.sizes), context, hidden, blocks, dropout)

    def _factors(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """m, log S (..., D), T (..., D, D), vectors (..., K, D)."""
        mean, raw, entries, numbers = self.params(context).split(self.sizes, -1)
        matrix = self.triangle(soft_clamp(entries, _LIMIT), torch.ones_like(raw))
        return mean, soft_clamp(raw, _LIMIT), matrix, self.reflections(numbers)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_scale, matrix, vectors = self._factors(context)
        outputs = reflect(vectors, torch.exp(log_scale) * multiply(matrix, inputs - mean))
        return outputs, log_scale.sum(-1).expand(inputs.shape[:-1])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_scale, matrix, vectors = self._factors(context)
        turned = reflect(vectors, inputs, inverse=True) * torch.exp(-log_scale)
        return solve(matrix, turned, upper=True, unit=True) + mean, -log_scale.sum(-1).expand(
            inputs.shape[:-1]
        )
