"""Spectral lines and their Zeeman patterns in LS coupling (Landi Degl'Innocenti & Landolfi 2004, ch. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

LARMOR = 4.668_644_8e-13
"""e / (4 pi m_e c^2) in 1/(Å G): the splitting of g = 1 is LARMOR lambda^2 B."""


@dataclass(frozen=True)
class Component:
    """One transition M_low -> M_up: strength (summing to 1 over its polarisation) and shift in units of
    LARMOR lambda^2 B, positive towards the red."""

    strength: float
    shift: float


class ZeemanPattern(NamedTuple):
    """The components of the three polarisations: blue (M_up - M_low = 1), pi (0) and red (-1)."""

    blue: tuple[Component, ...]
    pi: tuple[Component, ...]
    red: tuple[Component, ...]


@dataclass(frozen=True)
class Line:
    """A spectral line: air wavelength [Å], angular momenta and Landé factors of its levels, log10 gf.

    Raises:
        ValueError: the transition J_low -> J_up is no electric-dipole transition.
    """

    wavelength: float
    j_low: float
    j_up: float
    g_low: float
    g_up: float
    log_gf: float

    def __post_init__(self) -> None:
        if abs(self.j_up - self.j_low) not in (0, 1) or self.j_up + self.j_low < 1:
            raise ValueError(f"line: expected a dipole transition, got J {self.j_low} -> {self.j_up}")

    @cached_property
    def pattern(self) -> ZeemanPattern:
        """The anomalous Zeeman pattern."""
        return ZeemanPattern(*(_components(self, q) for q in (1, 0, -1)))


def _strength(j_low: float, j_up: float, m: float, q: int) -> float:
    """Relative strength, the squared 3j symbol (J_up J_low 1; -M-q M q) up to a factor common to one q."""
    if q == -1:  # mirror image
        return _strength(j_low, j_up, -m, 1)
    if j_up == j_low:
        return m**2 if q == 0 else (j_low - m) * (j_low + m + 1)
    if j_up == j_low + 1:
        return (j_low + 1) ** 2 - m**2 if q == 0 else (j_low + m + 1) * (j_low + m + 2)
    return j_low**2 - m**2 if q == 0 else (j_low - m) * (j_low - m - 1)


def _components(line: Line, q: int) -> tuple[Component, ...]:
    states = [-line.j_low + i for i in range(round(2 * line.j_low) + 1)]
    weights = {m: _strength(line.j_low, line.j_up, m, q) for m in states if abs(m + q) <= line.j_up}
    total = sum(weights.values())
    return tuple(
        Component(weight / total, line.g_low * m - line.g_up * (m + q))
        for m, weight in weights.items()
        if weight
    )


FE_6301 = Line(6301.4995, j_low=2, j_up=2, g_low=1.84, g_up=1.50, log_gf=-0.718)
"""Fe I 6301.5 Å, effective Landé factor 1.67."""

FE_6302 = Line(6302.4931, j_low=1, j_up=0, g_low=2.49, g_up=0.0, log_gf=-1.160)
"""Fe I 6302.5 Å, a normal triplet with g = 2.49."""
