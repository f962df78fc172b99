"""Sums of powers of the frequency, sum_k c_k y^p_k + sum_l d_l y^q_l ln y, one row of coefficients per binary, float64.

IMRPhenomD is made of such sums in y = M f. As (M f)^p = M^p f^p, a sum for n binaries on F shared frequencies is
the product of an (n, K) matrix with a (K, F) matrix of powers of f that is the same for every binary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

Term = tuple[float, Tensor]  # power, coefficients (n,)


@dataclass(frozen=True, eq=False)
class Series:
    """plain (n, K) belongs to y^powers, logs (n, L) to y^log_powers ln y; log_powers are among powers."""

    powers: tuple[float, ...]
    plain: Tensor
    log_powers: tuple[float, ...] = ()
    logs: Tensor | None = None

    @classmethod
    def of(cls, *plain: Term, logs: Sequence[Term] = ()) -> Series:
        """From (power, coefficients (n,))."""
        powers, coefficients = zip(*plain, strict=True)
        if not logs:
            return cls(powers, torch.stack(coefficients, dim=-1))
        log_powers, log_coefficients = zip(*logs, strict=True)
        stacked = torch.stack(log_coefficients, dim=-1)
        return cls(powers, torch.stack(coefficients, dim=-1), log_powers, stacked)

    def value(self, y: Tensor) -> Tensor:
        """The sum (n,) at y (n,) or ()."""
        terms = self.plain * power(y, self.powers)
        if self.logs is None:
            return terms.sum(-1)
        return terms.sum(-1) + (self.logs * power(y, self.log_powers)).sum(-1) * y.log()

    def slope(self, y: Tensor) -> Tensor:
        """The derivative with respect to y (n,) at y (n,) or ()."""
        exponents = _floats(self.powers, y.device)
        slope = (self.plain * exponents * power(y, self.powers)).sum(-1)
        if self.logs is not None:
            rise = _floats(self.log_powers, y.device) * y.log().unsqueeze(-1) + 1
            slope = slope + (self.logs * rise * power(y, self.log_powers)).sum(-1)
        return slope / y

    def plus(self, *added: Term) -> Series:
        """The series with coefficients (n,) added at powers that it has."""
        plain = self.plain.clone()
        for exponent, value in added:
            plain[:, self.powers.index(exponent)] += value
        return replace(self, plain=plain)

    def times(self, factor: Tensor, exponent: float) -> Series:
        """The series times factor (n,) y^exponent, for one without logarithms."""
        return Series(tuple(p + exponent for p in self.powers), self.plain * factor.unsqueeze(-1))


@dataclass(frozen=True, eq=False)
class Tabulated:
    """A series on F frequencies: matrix (n, K) @ basis (K, F)."""

    matrix: Tensor
    basis: Tensor

    def __call__(self, rows: slice, start: int, stop: int) -> Tensor:
        """Values (rows, stop - start) on those bins."""
        return self.matrix[rows] @ self.basis[:, start:stop]

    def __neg__(self) -> Tabulated:
        return Tabulated(-self.matrix, self.basis)


def tabulate(series: Sequence[Series], scale: Tensor, frequencies: Tensor) -> list[Tabulated]:
    """Each series of y = scale f for rows of scale (n,) on frequencies (F,).

    All at once, because the number of calls is what a small batch costs. A logarithm ln y = ln scale + ln f adds
    to the column of the same power without logarithm.
    """
    powers, logs, partners, widths = _layout(tuple((s.powers, s.log_powers) for s in series))
    tables = [t for s in series for t in (s.plain, s.logs) if t is not None]
    matrix = torch.cat(tables, dim=-1) * power(scale, powers)
    log_f, ln_scale = frequencies.log(), scale.log()
    basis = (_floats(powers, scale.device).unsqueeze(-1) * log_f).exp()
    for log, partner in zip(logs, partners, strict=True):
        matrix[:, partner] += (
            matrix[:, log].clone() * ln_scale
        )  # the product's gradient needs the column as it was
        basis[log] *= log_f
    return [Tabulated(m, b) for m, b in zip(matrix.split(widths, -1), basis.split(widths), strict=True)]


@lru_cache(maxsize=16)
def _layout(
    powers: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...],
) -> tuple[tuple[float, ...], list[int], list[int], list[int]]:
    """All powers, the columns with a logarithm, their columns without, and the widths."""
    columns: list[float] = []
    logs, partners = [], []
    for plain, with_log in powers:
        start = len(columns)
        columns += plain
        for exponent in with_log:
            logs.append(len(columns))
            partners.append(start + plain.index(exponent))
            columns.append(exponent)
    return tuple(columns), logs, partners, [len(plain) + len(with_log) for plain, with_log in powers]


def power(y: Tensor, exponents: tuple[float, ...]) -> Tensor:
    """y^p, (*y.shape, K); exp(p ln y), because torch's pow takes ten times as long."""
    return (y.log().unsqueeze(-1) * _floats(exponents, y.device)).exp()


@lru_cache(maxsize=64)
def _floats(exponents: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept, because every copy from host to device would wait for the device."""
    with torch.inference_mode(
        False
    ):  # whoever comes first: a tensor of inference mode allows no gradient later
        return torch.tensor(exponents, dtype=torch.float64, device=device)
