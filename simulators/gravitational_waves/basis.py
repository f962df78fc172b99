"""A reduced basis of whitened waveforms: the leading singular vectors of a set of them.

Every waveform of the set counts the same, whatever its loudness: the rows of the set are normalised first. What the
basis leaves out of a waveform h is its mismatch,

    1 - |projection of h|^2 / |h|^2 = |h - V V^H h|^2 / |h|^2,

computed from the residual, which keeps its relative precision where the mismatch is smaller than 1e-16. Replacing h
(signal-to-noise ratio rho) by its projection in a likelihood lowers ln L at the truth by rho^2 mismatch / 2 on
average, with a standard deviation of rho sqrt(mismatch) over the noise.

Small sets: the singular value decomposition itself. Large ones: the randomised range finder with power iterations
(Halko, Martinsson & Tropp 2011, SIAM Rev. 53, 217, arXiv 0909.4061, Algorithms 4.4 and 5.1), whose vectors are
orthonormal to rounding and whose mismatch is measured on held-out waveforms like that of any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sbiflow.checks import check_count, check_finite, check_shape

_EXACT = 1000
"""Up to this many rows or columns the decomposition is exact."""
_OVERSAMPLING = 20
_POWER_ITERATIONS = 3
_FIRST_GUESS = 64


@dataclass(frozen=True, eq=False)
class ReducedBasis:
    """Orthonormal vectors that span waveforms.

    Attributes:
        vectors: (F, K) complex, orthonormal columns.
        worst_mismatch: the largest mismatch among the held-out waveforms.
        singular_values: (K,) of the normalised set that it was made from, descending.
    """

    vectors: Tensor
    worst_mismatch: float
    singular_values: Tensor

    @classmethod
    def fit(
        cls,
        waveforms: Tensor,
        *,
        held_out: Tensor,
        count: int | None = None,
        tolerance: float | None = None,
        seed: int = 0,
    ) -> ReducedBasis:
        """The basis of a set of whitened waveforms.

        Args:
            waveforms: (n, F) complex.
            held_out: (m, F) complex, others of the same kind, on which the mismatch is measured.
            count: how many vectors; or
            tolerance: as few as keep the worst mismatch of `held_out` at or below it.
            seed: of the random projections that large sets need.

        Raises:
            ValueError: neither or both of count and tolerance; a count beyond the size of the set; a tolerance that
                no number of vectors reaches; waveforms that are zero or not finite.
        """
        norms = _checked(waveforms, "waveforms")
        _checked(held_out, "held_out")
        check_shape(held_out, "held_out", ("m", waveforms.shape[1]))
        if (count is None) == (tolerance is None):
            raise ValueError(f"expected count or tolerance, got count={count} and tolerance={tolerance}")
        generator = torch.Generator(waveforms.device).manual_seed(seed)
        if tolerance is not None:
            return _to_tolerance(waveforms, norms, held_out, tolerance, generator)
        largest = min(waveforms.shape)
        if check_count(count, "count") > largest:
            raise ValueError(f"count: expected at most {largest} (the size of the set), got {count}")
        vectors, values = _leading(waveforms, norms, int(count or 0), generator)
        return cls(vectors, float(_mismatch(vectors, held_out).max()), values)

    @property
    def size(self) -> int:
        """K."""
        return self.vectors.shape[1]

    def coefficients(self, waveforms: Tensor) -> Tensor:
        """Inner products with the vectors, (..., F) -> (..., K)."""
        return waveforms @ self.vectors.conj()

    def expand(self, coefficients: Tensor) -> Tensor:
        """(..., K) -> (..., F)."""
        return coefficients @ self.vectors.mT

    def mismatch(self, waveforms: Tensor) -> Tensor:
        """What the basis leaves out of waveforms, (n, F) -> (n,)."""
        return _mismatch(self.vectors, waveforms)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> ReducedBasis:
        """The same basis elsewhere, or in another complex precision."""
        return replace(self, vectors=self.vectors.to(device=device, dtype=dtype))


def _to_tolerance(
    waveforms: Tensor, norms: Tensor, held_out: Tensor, tolerance: float, generator: torch.Generator
) -> ReducedBasis:
    """Doubles the number of vectors until the best prefix of them is good enough."""
    largest, count = min(waveforms.shape), min(_FIRST_GUESS, *waveforms.shape)
    while True:
        vectors, values = _leading(waveforms, norms, count, generator)
        worst = _worst_of_prefixes(vectors, held_out)
        enough = (worst <= tolerance).nonzero().flatten()
        if len(enough):
            size = int(enough[0])
            return ReducedBasis(vectors[:, :size].clone(), float(worst[size]), values[:size].clone())
        if count == largest:
            raise ValueError(
                f"tolerance: expected at least {float(worst.min()):.3g} (all vectors), got {tolerance}"
            )
        count = min(2 * count, largest)


def _worst_of_prefixes(vectors: Tensor, held_out: Tensor) -> Tensor:
    """The worst mismatch of the first 0, 1, ..., K vectors, (K + 1,): residual of all, and what the last ones add."""
    power = held_out.abs().square().sum(1, keepdim=True)
    parts = (held_out @ vectors.conj()).abs().square() / power
    left_out = torch.cat([parts, _mismatch(vectors, held_out)[:, None]], 1)
    return left_out.flip(1).cumsum(1).flip(1).amax(0)


def _mismatch(vectors: Tensor, waveforms: Tensor) -> Tensor:
    residual = waveforms - (waveforms @ vectors.conj()) @ vectors.mT
    return residual.abs().square().sum(1) / waveforms.abs().square().sum(1)


def _leading(
    waveforms: Tensor, norms: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The singular vectors (F, count) that span its rows best, and the singular values, of the normalised set."""
    probes = count + _OVERSAMPLING
    if min(waveforms.shape) <= max(_EXACT, probes):
        _, values, rows = torch.linalg.svd(waveforms / norms, full_matrices=False)
        return rows[:count].mT.contiguous(), values[:count].clone()
    size = (waveforms.shape[1], probes)
    space = torch.randn(size, generator=generator, dtype=waveforms.dtype, device=waveforms.device)
    for _ in range(_POWER_ITERATIONS):  # orthonormal in between, lest the small singular values drown
        space, _ = torch.linalg.qr(space)
        space = waveforms.mH @ ((waveforms @ space) / norms.square())
    space, _ = torch.linalg.qr(space)
    _, values, rows = torch.linalg.svd((waveforms @ space) / norms, full_matrices=False)
    return (rows[:count] @ space.mH).mT.contiguous(), values[:count].clone()


def _checked(waveforms: Tensor, name: str) -> Tensor:
    """The norms (n, 1) of waveforms that are what they should be."""
    check_shape(waveforms, name, ("n", "F"))
    if not waveforms.is_complex() or not waveforms.numel():
        raise ValueError(
            f"{name}: expected complex numbers, got {waveforms.dtype} of shape {tuple(waveforms.shape)}"
        )
    check_finite(torch.view_as_real(waveforms.resolve_conj()), name)
    norms = torch.linalg.vector_norm(waveforms, dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise ValueError(
            f"{name}: expected waveforms that are not zero, got {int((norms == 0).sum())} that are"
        )
    return norms
