"""A synthetic sunspot: maps of nine atmospheric parameters, the simulator that makes spectra of them, and strays.

Not a model of a sunspot but a field with its ranges and scales: umbra, penumbra with filaments and Evershed flow, and a
quiet sun with granules and network. Every value lies inside the prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

import sbiflow as sf
from sbiflow import datasets
from simulators.crisp import INSTRUMENT, WAVELENGTHS, load_crisp
from simulators.stokes import MilneEddington

NOISE = (1e-2, 2e-3, 2e-3, 2e-3)  # of I, Q, U, V in units of the quiet continuum: CRISP's, without allowances
FLOW = sf.FlowConfig(family="spline_coupling", layers=5, hidden=64)
EMBEDDING = sf.EmbeddingConfig(kind="residual", hidden=128, blocks=3, features=64)
QUIET, PENUMBRA, UMBRA = range(3)
_PENUMBRA_RADIUS, _UMBRA_SHARE = 0.36, 0.42  # of the field, of the spot


def sunspot_simulator() -> MilneEddington:
    """Full Stokes spectra of Fe I 6301.5 and 6302.5 Å at CRISP's 16 wavelengths; umbrae included."""
    prior = sf.Prior(
        sf.Uniform("B", 0.0, 4000.0, unit="G"),
        sf.Sine("inclination", unit="rad"),
        sf.PeriodicUniform("azimuth", 0.0, math.pi, unit="rad"),
        sf.Uniform("v_los", -5.0, 5.0, unit="km/s"),
        sf.Uniform("width", 0.015, 0.06, unit="Å"),
        sf.LogUniform("eta0", 1.0, 200.0),
        sf.Uniform("damping", 0.0, 1.0),
        sf.Uniform("S0", 0.0, 1.0),
        sf.Uniform("S1", 0.0, 1.5),
    )
    return MilneEddington(
        prior,
        WAVELENGTHS,
        noise=NOISE,
        instrument=INSTRUMENT,
        grid_step=0.0075,  # good to 1e-6 for the narrowest and strongest line of the prior
        precision=torch.float32,
        name="milne-eddington-sunspot",
    )


def sunspot(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (size, size, 9) in the order of the simulator, and regions (size, size): QUIET, PENUMBRA or UMBRA."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) / size
    angle, bumps = np.arctan2(y, x), _smooth(rng, size, 0.08)
    rho = np.hypot(x, 0.9 * y) / (_PENUMBRA_RADIUS * (1 + 0.06 * bumps))
    umbra, quiet = _step((_UMBRA_SHARE - rho) / 0.03), _step((rho - 1) / 0.02)
    penumbra = 1 - umbra - quiet
    fibre = _filaments(rng, rho, angle)
    granules = _smooth(rng, size, max(0.006, 1.2 / size))
    network = _step((_smooth(rng, size, 0.04) - 1.3) / 0.15)
    wave = _smooth(rng, size, 0.05)

    def blend(
        in_umbra: np.ndarray | float, in_penumbra: np.ndarray | float, outside: np.ndarray | float
    ) -> np.ndarray:
        return umbra * in_umbra + penumbra * in_penumbra + quiet * outside

    spot_field = 3000 * np.exp(-((rho / 0.85) ** 2)) + 300
    field = blend(spot_field, spot_field + 180 * fibre, 70 + 40 * np.abs(granules) + 1100 * network)
    tilt = np.radians(12 + 68 * np.clip(rho, 0, 1))
    inclination = blend(tilt, tilt + 0.2 * fibre, math.pi / 2 + 0.5 * wave - network * (0.9 + 0.5 * wave))
    azimuth = np.mod(angle + 0.25 * wave + quiet * 1.5 * _smooth(rng, size, 0.05), math.pi)
    evershed = 2.2 * np.cos(angle - 0.6) * (1 + 0.4 * fibre)
    velocity = blend(0.2 * wave, evershed + 0.3 * wave, 0.3 * wave - 0.9 * granules * (1 - 0.8 * network))
    bright = blend(0.25, 0.72 + 0.1 * fibre, 1.0 + 0.07 * granules)  # continuum, S0 + S1
    maps = {
        "B": field,
        "inclination": np.clip(inclination, 0.05, math.pi - 0.05),
        "azimuth": azimuth,
        "v_los": velocity,
        "width": blend(0.026, 0.03 + 0.002 * fibre, 0.032 + 0.0015 * granules),
        "eta0": blend(8.0, 14 * np.exp(0.15 * fibre), 18 * np.exp(0.2 * granules)),
        "damping": np.clip(blend(0.45, 0.35, 0.25) + 0.03 * wave, 0.02, 0.98),
        "S0": bright * (0.33 + 0.02 * wave),
        "S1": bright * (0.67 - 0.02 * wave),
    }
    theta = np.stack([maps[name] for name in sunspot_simulator().prior.names], -1)
    return theta, np.where(umbra > 0.5, UMBRA, np.where(quiet > 0.5, QUIET, PENUMBRA))


@dataclass(frozen=True)
class Stray:
    """Spectra that the simulator cannot make: `make` turns those of a patch (n, 4, 16) into others."""

    name: str
    make: Callable[[Tensor], Tensor]


def strays() -> list[Stray]:
    """What an instrument or another atmosphere may put into a pixel; the real spectrum only where its file is."""
    ripple = 0.06 * torch.sin(torch.arange(16) * 2 * math.pi / 3)
    broken = torch.ones(16).scatter(0, torch.tensor([4]), 0.0)
    found = [
        Stray(
            "lines in emission",
            lambda x: torch.cat([2 * x[:, :1].amax(-1, keepdim=True) - x[:, :1], x[:, 1:]], 1),
        ),
        Stray("fringes in I", lambda x: x + torch.stack([ripple, *torch.zeros(3, 16)])),
        Stray("one wavelength lost", lambda x: x * broken),
        Stray("I leaks into V, 5 %", lambda x: torch.cat([x[:, :3], x[:, 3:] + 0.05 * x[:, :1]], 1)),
    ]
    try:
        real = load_crisp(datasets.find("crisp/feobs.fits")).stokes.to(torch.float32)
    except FileNotFoundError:
        return found
    return [*found, Stray("real CRISP spectrum", lambda x: real.expand_as(x))]


def with_faults(x: Tensor, size: int) -> tuple[np.ndarray, dict[str, tuple[slice, slice]], int]:
    """The field (size, size, 4, 16) with a patch of each stray along the lower edge, a dead column and a dead corner."""
    field, side, patches = x.reshape(size, size, 4, 16).clone(), max(size // 40, 2), {}
    for i, stray in enumerate(strays()):
        patches[stray.name] = here = slice(side, 2 * side), slice((2 * i + 2) * side, (2 * i + 3) * side)
        field[here] = stray.make(field[here].reshape(-1, 4, 16)).reshape(side, side, 4, 16)
    field[:, -3], field[-side:, :side, 2, 5] = torch.nan, torch.nan
    return field.numpy(), patches, int((~torch.isfinite(field)).flatten(2).any(-1).sum())


def _smooth(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """A Gaussian random field of unit variance, correlated over `scale` times the field."""
    noise = gaussian_filter(rng.normal(size=(size, size)), scale * size, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _filaments(rng: np.random.Generator, rho: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Radial fibres, within [-1, 1]: noise on (angle, radius) that varies along the radius slowly."""
    noise = gaussian_filter(rng.normal(size=(300, 40)), (1.2, 4), mode=("wrap", "nearest"))
    places = np.mod(angle / (2 * math.pi), 1) * 300, np.clip(rho, 0, 1.2) * 32
    found = map_coordinates(noise / noise.std(), places, order=1, mode="grid-wrap")
    return np.tanh(found)


def _step(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(value, -50, 50)))
