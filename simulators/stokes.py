"""Stokes I, Q, U, V of photospheric lines in a Milne-Eddington atmosphere, batched and differentiable.

The physics is in unno.py (radiative transfer), voigt.py, zeeman.py and broadening.py.

Conventions: v_los > 0 is a redshift; inclination 0 points to the observer and gives V > 0 in the blue wing;
Q is proportional to cos 2 azimuth, U to sin 2 azimuth; H(a, v) in eta0 H(a, v) is not divided by sqrt(pi).
All lines share the Doppler width in Å and the damping; eta0 belongs to the first line, that of another line
is eta0 times the ratio of gf (lower levels as equally populated per state, wavelengths as equal;
`eta_ratio` multiplies it).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sbiflow.checks import as_tensor, check_finite, check_shape
from sbiflow.priors import Prior, Uniform
from simulators.broadening import Instrument, broadening
from simulators.unno import leak_into_v, polarised, rotate, unpolarised, values_at_once
from simulators.zeeman import FE_6301, FE_6302, Line

DEFAULTS: Mapping[str, float] = {
    "B": 0.0,  # field strength [G]
    "inclination": 0.0,  # [rad], 0 towards the observer
    "azimuth": 0.0,  # [rad], period pi
    "v_los": 0.0,  # [km/s], positive away from the observer
    "damping": 0.0,  # a of H(a, v)
    "v_mac": 0.0,  # macroturbulence, 1/e half-width [km/s]
    "filling": 1.0,  # fraction of the light from the field; the rest has the same atmosphere with B = 0
    "eta_ratio": 1.0,  # correction of the later lines' eta0 relative to the ratio of gf
    "crosstalk": 0.0,  # I -> V: the fraction of I that is added to V
}
REQUIRED = ("width", "eta0", "S0", "S1")
"""Doppler width [Å], eta0 of the first line, source function S0 + S1 tau in any unit of intensity."""
_NOT_NEGATIVE = ("B", "damping", "v_mac", "filling", "eta_ratio", "width", "eta0", "kl")

_STEP = 0.43  # in Doppler widths: leaves 2e-7 of the continuum (3e-8 at 0.4, 3e-5 at 0.67) for eta0 = 200


class MilneEddington:
    """Stokes profiles of spectral lines with Gaussian noise: a `Simulator` with a likelihood.

    Args:
        prior: any of the names in `DEFAULTS` and `REQUIRED`, in any order; `kl` = sqrt(pi) eta0 is allowed.
        wavelengths: in air [Å], in any order and spacing.
        noise: standard deviation, one value, one per Stokes parameter or one per feature (of `x_shape`).
        stokes: which of I, Q, U, V, in this order; `x_shape` is (len(stokes), n) or, for a single one, (n,).
        fixed: values of parameters that the prior does not contain.
        mu: cosine of the heliocentric angle.
        instrument: spectral transmission profile.
        grid_step: step [Å] of the grid on which instrument and macroturbulence act; by default 0.43 of the
            prior's smallest Doppler width, good to 1e-6 of the continuum.
        precision: dtype in which `signal` computes and answers; by default that of theta.

    Raises:
        ValueError: parameters missing, unknown, given twice or out of their domain; noise invalid.
    """

    def __init__(
        self,
        prior: Prior,
        wavelengths: Any,
        *,
        noise: Any,
        stokes: str = "IQUV",
        lines: Sequence[Line] = (FE_6301, FE_6302),
        fixed: Mapping[str, float] | None = None,
        mu: float = 1.0,
        instrument: Instrument | None = None,
        grid_step: float | None = None,
        precision: torch.dtype | None = None,
        name: str = "milne-eddington",
    ) -> None:
        if not stokes or [letter for letter in "IQUV" if letter in stokes] != list(stokes):
            raise ValueError(f"stokes: expected some of I, Q, U, V in this order, got {stokes!r}")
        if not 0 < mu <= 1:
            raise ValueError(f"mu: expected 0 < mu <= 1, got {mu}")
        self.prior, self.stokes, self.lines, self.mu, self.name = prior, stokes, tuple(lines), mu, name
        self.precision = precision
        self.wavelengths = as_tensor(wavelengths, "wavelengths", torch.float64)
        check_shape(self.wavelengths, "wavelengths", ("n",))
        check_finite(self.wavelengths, "wavelengths")
        if not len(self.wavelengths):
            raise ValueError("wavelengths: expected at least one, got none")
        self.fixed = _fixed_values(prior, fixed or {})
        self.x_shape = (len(stokes), len(self.wavelengths)) if len(stokes) > 1 else (len(self.wavelengths),)
        self.x_names = tuple(f"{s} {w:.3f}" for s in stokes for w in self.wavelengths.tolist())
        self.noise = _noise_levels(noise, self.x_shape)
        self._noise_on: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        low, high = _bounds(prior, self.fixed)
        step = _STEP * low["width"] if grid_step is None else grid_step
        self._broadening = broadening(self.wavelengths, instrument, high["v_mac"], step)
        grid = (self.wavelengths.tolist(), instrument, step, precision)
        config = (grid, stokes, self.lines, sorted(self.fixed.items()), mu)
        self.version = "1." + hashlib.sha256(repr(config).encode()).hexdigest()[:12]

    @classmethod
    def paper_case(cls) -> MilneEddington:
        """The 5-parameter benchmark of Díaz Baso et al. (2022, arXiv 2108.07089): Stokes I of one line."""
        prior = Prior(
            Uniform("v_los", -3.0, 3.0, unit="km/s"),
            Uniform("width", 0.05, 0.2, unit="Å"),
            Uniform("kl", 0.0, 5.0),
            Uniform("S0", 0.0, 1.0),
            Uniform("S1", 0.0, 1.0),
        )
        return cls(
            prior,
            [6300.9 + 0.04 * i for i in range(30)],
            noise=8e-3,
            stokes="I",
            lines=(Line(6301.508, 2, 2, 1.84, 1.50, -0.718),),
            name="milne-eddington-paper",
        )

    def signal(self, theta: Tensor) -> Tensor:
        """Noise-free Stokes parameters, (n, D) -> (n, *x_shape), on the device of theta, in `precision`."""
        check_shape(theta, "theta", ("n", self.prior.dim))
        rows = max(1, values_at_once(theta.device) // self._broadening.n_nodes)
        theta = theta if self.precision is None else theta.to(self.precision)
        return torch.cat([self._rows(part) for part in theta.split(rows)])

    def observe(self, signal: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The signal plus its Gaussian noise."""
        unit = torch.randn(signal.shape, generator=generator, dtype=signal.dtype, device=signal.device)
        return torch.addcmul(signal, unit, self._noise(signal))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x | theta), normalised: theta (n, D), x (*x_shape) or (n, *x_shape) -> (n,), float64.

        The signal is computed in `precision` (by default in float64), everything else in float64.
        """
        x = as_tensor(x, "x", torch.float64)
        check_shape(x, "x", self.x_shape if x.ndim == len(self.x_shape) else (len(theta), *self.x_shape))
        noise = self._noise(theta.double())
        residual = ((x.to(theta.device) - self.signal(theta.double()).double()) / noise).flatten(1)
        return -0.5 * residual.square().sum(1) - (noise.log() + 0.5 * math.log(2 * math.pi)).sum()

    def _rows(self, theta: Tensor) -> Tensor:
        p = self._columns(theta)
        distances = [self._broadening.nodes(line.wavelength, p["v_mac"]) for line in self.lines]
        seen = self._broadening.apply(self._spectrum(p, distances), p["v_mac"])
        iquv = rotate(seen, p["azimuth"]) if seen.shape[1] == 4 else pad(seen, (0, 0, 0, 3))
        iquv = iquv if self.fixed.get("crosstalk") == 0 else leak_into_v(iquv, p["crosstalk"])
        picked = iquv[:, ["IQUV".index(letter) for letter in self.stokes]]
        return picked if len(self.stokes) > 1 else picked[:, 0]

    def _spectrum(self, p: Mapping[str, Tensor], distances: Sequence[Tensor]) -> Tensor:
        """The emergent spectrum at azimuth 0: Stokes I (n, 1, M) where there is no field, else (n, 4, M)."""
        damped = self.fixed.get("damping") != 0
        if self.fixed.get("B") == 0:
            return unpolarised(self.lines, distances, p, self.mu, damped=damped)
        magnetic = polarised(self.lines, distances, p, self.mu)
        if self.fixed.get("filling") == 1:
            return magnetic
        rest = pad(unpolarised(self.lines, distances, p, self.mu, damped=damped), (0, 0, 0, 3))
        filling = p["filling"].unsqueeze(-1)
        return filling * magnetic + (1 - filling) * rest

    def _columns(self, theta: Tensor) -> dict[str, Tensor]:
        """All parameters by name, (n, 1); a fixed v_mac is (1, 1), so that all rows share one kernel."""
        p = {name: theta.new_full((len(theta), 1), value) for name, value in self.fixed.items()}
        p |= {name: theta[:, i : i + 1] for i, name in enumerate(self.prior.names)}
        p["v_mac"] = p["v_mac"][:1] if "v_mac" in self.fixed else p["v_mac"]
        return p if "kl" not in p else p | {"eta0": p["kl"] / math.sqrt(math.pi)}

    def _noise(self, like: Tensor) -> Tensor:
        """The noise levels on the device and in the dtype of a tensor; copied there once."""
        key = (like.device, like.dtype)
        if key not in self._noise_on:
            self._noise_on[key] = self.noise.to(like)
        return self._noise_on[key]


def _fixed_values(prior: Prior, fixed: Mapping[str, float]) -> dict[str, float]:
    """Values of all parameters outside the prior, the defaults included."""
    names = set(prior.names)
    known = set(DEFAULTS) | set(REQUIRED) | {"kl"}
    given = set(fixed)
    if unknown := (names | given) - known:
        raise ValueError(f"parameters: expected some of {sorted(known)}, got also {sorted(unknown)}")
    if twice := names & given:
        raise ValueError(f"parameters: expected them in the prior or fixed, got both for {sorted(twice)}")
    if len({"kl", "eta0"} & (names | given)) == 2:
        raise ValueError("parameters: expected eta0 or kl, got both")
    missing = set(REQUIRED) - names - given - ({"eta0"} if "kl" in names | given else set())
    if missing:
        raise ValueError(f"parameters: expected {', '.join(REQUIRED)}, got none of {sorted(missing)}")
    return {name: float(value) for name, value in (dict(DEFAULTS) | dict(fixed)).items() if name not in names}


def _bounds(prior: Prior, fixed: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Smallest and largest value of every parameter; ValueError where they leave its domain."""
    low = dict(fixed) | dict(zip(prior.names, prior.low.tolist(), strict=True))
    high = dict(fixed) | dict(zip(prior.names, prior.high.tolist(), strict=True))
    for name in _NOT_NEGATIVE:
        if name in low and not low[name] >= 0:
            raise ValueError(f"{name}: expected values >= 0, got {low[name]} as the smallest")
    if not high["filling"] <= 1:
        raise ValueError(f"filling: expected values <= 1, got {high['filling']} as the largest")
    if not high["width"] > 0:
        raise ValueError(f"width: expected values > 0, got {high['width']}")
    return low, high


def _noise_levels(noise: Any, x_shape: tuple[int, ...]) -> Tensor:
    levels = as_tensor(noise, "noise", torch.float64)
    if levels.ndim == 1 and len(x_shape) == 2 and len(levels) == x_shape[0]:
        levels = levels[:, None]  # one per Stokes parameter
    if not (levels.isfinite() & (levels > 0)).all():
        raise ValueError(f"noise: expected finite values > 0, got {noise}")
    try:
        return levels.broadcast_to(x_shape).clone()
    except RuntimeError:
        raise ValueError(f"noise: expected a shape that fits {x_shape}, got {tuple(levels.shape)}") from None
