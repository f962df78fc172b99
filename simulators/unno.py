"""The Unno-Rachkovsky solution for lines in a Milne-Eddington atmosphere, as functions of tensors.

Landi Degl'Innocenti & Landolfi (2004), ch. 9, for a source function S = S0 + S1 tau and azimuth 0, where
eta_U = rho_U = 0 (another azimuth is a rotation of Q, U by twice its value):

    e = 1 + eta_I,   P = eta_Q rho_Q + eta_V rho_V,   R = rho_Q^2 + rho_V^2,
    D = e^2 (e^2 - eta_Q^2 - eta_V^2 + R) - P^2,
    I = S0 + mu S1 e (e^2 + R) / D,                  Q = -mu S1 (e^2 eta_Q + rho_Q P) / D,
    U = -mu S1 e (eta_Q rho_V - eta_V rho_Q) / D,    V = -mu S1 (e^2 eta_V + rho_V P) / D.

Parameters come as a mapping from the names of `simulators.stokes` to tensors of shape (n or 1, 1); distances
from a line's centre [Å] have the shape (n or 1, M).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simulators.broadening import LIGHT
from simulators.voigt import voigt
from simulators.zeeman import LARMOR, Component, Line

_CHUNK = {"cpu": 40_000, "cuda": 8_000_000}  # values per temporary: what a core's cache holds, or a GPU likes


def values_at_once(device: torch.device) -> int:
    """Values per temporary: with fewer, calling torch is the cost; with more, memory."""
    return _CHUNK.get(device.type, 40_000)


def polarised(
    lines: Sequence[Line], distances: Sequence[Tensor], p: Mapping[str, Tensor], mu: float
) -> Tensor:
    """Stokes I, Q, U, V at azimuth 0, (n, 4, M)."""
    parts = [_propagation(line, x, p, lines[0]) for line, x in zip(lines, distances, strict=True)]
    eta_i, eta_q, eta_v, rho_q, rho_v = (sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True))
    e = 1 + eta_i
    e2, rho2 = e * e, rho_q * rho_q + rho_v * rho_v
    cross = eta_q * rho_q + eta_v * rho_v
    scale = mu * p["S1"] / (e2 * (e2 - eta_q * eta_q - eta_v * eta_v + rho2) - cross * cross)
    return torch.stack(
        [
            p["S0"] + scale * e * (e2 + rho2),
            -scale * (e2 * eta_q + rho_q * cross),
            -scale * e * (eta_q * rho_v - eta_v * rho_q),
            -scale * (e2 * eta_v + rho_v * cross),
        ],
        dim=1,
    )


def unpolarised(
    lines: Sequence[Line], distances: Sequence[Tensor], p: Mapping[str, Tensor], mu: float, *, damped: bool
) -> Tensor:
    """Stokes I without a field, (n, 1, M); `damped` = False takes the damping as 0, H(0, v) = exp(-v^2)."""
    eta = torch.zeros((), dtype=p["width"].dtype, device=p["width"].device)
    for line, x in zip(lines, distances, strict=True):
        v = _reduced(line, x, p)
        eta = eta + _eta0(line, p, lines[0]) * (voigt(p["damping"], v)[0] if damped else torch.exp(-v * v))
    return (p["S0"] + mu * p["S1"] / (1 + eta)).unsqueeze(1)


def rotate(iquv: Tensor, azimuth: Tensor) -> Tensor:
    """Stokes parameters (n, 4, M) of azimuth 0 turned to an azimuth (n or 1, 1)."""
    cos, sin = torch.cos(2 * azimuth), torch.sin(2 * azimuth)
    i, q, u, v = iquv.unbind(1)
    return torch.stack([i, q * cos - u * sin, q * sin + u * cos, v], dim=1)


def leak_into_v(iquv: Tensor, crosstalk: Tensor) -> Tensor:
    """V plus a fraction `crosstalk` (n or 1, 1) of I, what a polarimeter's calibration may leave behind."""
    i, q, u, v = iquv.unbind(1)
    return torch.stack([i, q, u, v + crosstalk * i], dim=1)


def _eta0(line: Line, p: Mapping[str, Tensor], first: Line) -> Tensor:
    return p["eta0"] if line is first else p["eta0"] * p["eta_ratio"] * 10 ** (line.log_gf - first.log_gf)


def _reduced(line: Line, distance: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """Distance from the Doppler-shifted centre in Doppler widths."""
    return (distance - line.wavelength / LIGHT * p["v_los"]) / p["width"]


def _propagation(line: Line, distance: Tensor, p: Mapping[str, Tensor], first: Line) -> tuple[Tensor, ...]:
    """One line's eta_I, eta_Q, eta_V, rho_Q, rho_V at azimuth 0."""
    v = _reduced(line, distance, p)
    splitting = LARMOR * line.wavelength**2 * p["B"] / p["width"]
    blue, pi, red = _profiles(line.pattern, p["damping"], v, splitting)
    half = 0.5 * _eta0(line, p, first)
    across, along = half * torch.sin(p["inclination"]) ** 2, half * torch.cos(p["inclination"])
    mean = [(b + r) / 2 for b, r in zip(blue, red, strict=True)]
    eta_q, rho_q = (across * (centre - m) for centre, m in zip(pi, mean, strict=True))
    eta_v, rho_v = (along * (r - b) for b, r in zip(blue, red, strict=True))
    return eta_q + 2 * half * mean[0], eta_q, eta_v, rho_q, rho_v


def _profiles(
    pattern: Sequence[Sequence[Component]], damping: Tensor, v: Tensor, splitting: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """For each polarisation the sum of H and L over its components."""
    parts = [(i, part) for i, polarisation in enumerate(pattern) for part in polarisation]
    at_once = max(1, values_at_once(v.device) // max(1, v.numel()))
    sums = [(torch.zeros_like(v), torch.zeros_like(v)) for _ in pattern]
    for first in range(0, len(parts), at_once):
        group = parts[first : first + at_once]
        shifts = torch.stack([part.shift * splitting for _, part in group])
        for (i, part), h, l in zip(group, *voigt(damping, v - shifts), strict=True):
            sums[i] = sums[i][0] + part.strength * h, sums[i][1] + part.strength * l
    return sums
