"""An independent Milne-Eddington synthesis: wofz, 3j symbols by Racah, a 4x4 linear system per point."""

from __future__ import annotations

from math import factorial, sqrt

import numpy as np
from scipy.special import wofz

LIGHT = 299_792.458
LARMOR = 4.668_644_8e-13
LINES = ((6301.4995, 2, 2, 1.84, 1.50, -0.718), (6302.4931, 1, 0, 2.49, 0.0, -1.160))


def three_j(j1: int, j2: int, j3: int, m1: int, m2: int, m3: int) -> float:
    """Wigner 3j symbol by Racah's formula, integer arguments."""
    if m1 + m2 + m3 or abs(m1) > j1 or abs(m2) > j2 or abs(m3) > j3 or not abs(j1 - j2) <= j3 <= j1 + j2:
        return 0.0
    f = factorial
    norm = f(j1 + j2 - j3) * f(j1 - j2 + j3) * f(-j1 + j2 + j3) / f(j1 + j2 + j3 + 1)
    norm *= f(j1 + m1) * f(j1 - m1) * f(j2 + m2) * f(j2 - m2) * f(j3 + m3) * f(j3 - m3)
    total = 0.0
    for k in range(j1 + j2 + j3 + 1):
        args = (k, j1 + j2 - j3 - k, j1 - m1 - k, j2 + m2 - k, j3 - j2 + m1 + k, j3 - j1 - m2 + k)
        if min(args) >= 0:
            total += (-1) ** k / np.prod([float(f(a)) for a in args])
    return (-1) ** (j1 - j2 - m3) * sqrt(norm) * total


def _profiles(lam: np.ndarray, line: tuple, p: dict) -> list[np.ndarray]:
    """H + iL summed over the components of blue, pi and red."""
    centre, j_low, j_up, g_low, g_up, _ = line
    out = []
    for q in (1, 0, -1):
        total = np.zeros(lam.shape, complex)
        for m in range(-j_low, j_low + 1):
            strength = 3 * three_j(j_up, j_low, 1, -(m + q), m, q) ** 2
            shift = (g_low * m - g_up * (m + q)) * LARMOR * centre**2 * p["B"]
            v = (lam - centre - centre * p["v_los"] / LIGHT - shift) / p["width"]
            total += strength * wofz(v + 1j * p["damping"])
        out.append(total)
    return out


def stokes(lam: np.ndarray, p: dict, mu: float = 1.0, lines: tuple = LINES) -> np.ndarray:
    """Stokes I, Q, U, V (4, n) from I = S0 e + mu S1 K^-1 e with the full propagation matrix."""
    eta, rho = np.zeros((4, len(lam))), np.zeros((4, len(lam)))
    sin2, cos = np.sin(p["inclination"]) ** 2, np.cos(p["inclination"])
    turn = np.cos(2 * p["azimuth"]), np.sin(2 * p["azimuth"])
    for line in lines:
        blue, pi, red = _profiles(lam, line, p)
        strength = (
            p["eta0"] * 10 ** (line[5] - lines[0][5]) * (p.get("eta_ratio", 1.0) if line != lines[0] else 1)
        )
        total = 0.5 * (pi * sin2 + 0.5 * (blue + red) * (1 + cos**2))
        linear = 0.5 * (pi - 0.5 * (blue + red)) * sin2
        for i, part in enumerate((total, linear * turn[0], linear * turn[1], 0.5 * (red - blue) * cos)):
            eta[i] += strength * part.real
            rho[i] += strength * part.imag
    k = np.empty((len(lam), 4, 4))
    for i in range(4):
        k[:, i, i] = 1 + eta[0]
    for i in (1, 2, 3):
        k[:, 0, i] = k[:, i, 0] = eta[i]
    k[:, 1, 2], k[:, 2, 1] = rho[3], -rho[3]
    k[:, 1, 3], k[:, 3, 1] = -rho[2], rho[2]
    k[:, 2, 3], k[:, 3, 2] = rho[1], -rho[1]
    unit = np.array([1.0, 0, 0, 0])
    solution = np.linalg.solve(k, np.broadcast_to(unit, (len(lam), 4))[..., None])[..., 0]
    return (p["S0"] * unit + mu * p["S1"] * solution).T


def broadened(lam: np.ndarray, p: dict, sigma: np.ndarray, step: float = 5e-4) -> np.ndarray:
    """`stokes` convolved with a Gaussian of standard deviation sigma (n,) [Å], by brute force."""
    out = np.empty((4, len(lam)))
    for j, (centre, s) in enumerate(zip(lam, sigma, strict=True)):
        x = np.arange(-round(6 * s / step) - 1, round(6 * s / step) + 2) * step
        weight = np.exp(-0.5 * (x / s) ** 2)
        out[:, j] = stokes(centre + x, p) @ weight / weight.sum()
    return out
