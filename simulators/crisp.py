"""SST/CRISP spectra of Fe I 6301.5 and 6302.5 Å: reading, scaling, and the simulator that is meant for them.

The numbers come from least-squares fits of `crisp/feobs.fits` with independent code (numpy, scipy,
brute-force convolution, several starts): chi^2 per point (16 wavelengths x 4) with noise 1e-2 in I and 2e-3
in Q, U, V.

    free besides the nine parameters                      all      I      Q      U      V
    nothing                                             11.20  10.12   0.51  28.29   5.89
    Gaussian instrument, FWHM 0.055 Å                    5.98   5.07   0.47  13.69   4.69
    the same and v_mac                                   3.02   2.45   0.44   4.69   4.50
    the same, v_mac and filling factor                   2.98   2.43   0.53   4.36   4.58
    the same, v_mac and ratio of the lines' eta0         2.93   2.45   0.48   4.36   4.44
    the same, v_mac and a second line's own velocity     2.82   2.33   0.43   4.28   4.25
    the same, v_mac and crosstalk I -> V                 2.04   2.34   0.43   4.54   0.86

Hence eleven parameters: the nine, v_mac and crosstalk (0.57 +- 0.08 % of I). What remains are gradients of
velocity and field along the line of sight, which no Milne-Eddington atmosphere has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import check_positive
from sbiflow.optional import require
from sbiflow.priors import LogUniform, PeriodicUniform, Prior, Sine, Uniform
from simulators.broadening import GaussianInstrument
from simulators.stokes import MilneEddington

# fmt: off
WAVELENGTHS = (
    6301.2897, 6301.3501, 6301.4005, 6301.4408, 6301.4811, 6301.5214, 6301.5616, 6301.6120, 6301.6724,
    6302.1861, 6302.3573, 6302.3976, 6302.4379, 6302.4782, 6302.5185, 6302.5588,
)
# fmt: on
"""The wavelengths of `crisp/feobs.fits` [Å], to 0.1 mÅ."""

INSTRUMENT = GaussianInstrument(0.055)
"""CRISP's transmission at 6302 Å, FWHM about 55 mÅ; what it is wrong by, the free v_mac takes up."""

CONTINUUM_FACTOR = 1.047
"""Continuum over the largest intensity (6302.186 Å, in the wings of both lines), from the fit with all Stokes
parameters; 1.028 to 1.057 from fits of I alone, so S0 and S1 stay free of S0 + S1 = 1."""

NOISE = (1.5e-2, 4e-3, 4e-3, 2e-3)
"""Noise of I, Q, U, V in units of the continuum, allowance for the model included.

The bare noise is 1e-2 and 2e-3 (the polarimetric noise measured in the far wings, from Q and U at the two
brightest wavelengths, is 1.5e-3). What a Milne-Eddington atmosphere cannot reproduce adds in quadrature
1.1e-2 in I and 3.5e-3 in Q and U: the same in both, since the zero of the azimuth is arbitrary. The residuals
of the best fit have an rms of 1.5e-2, 1.3e-3, 4.3e-3 and 1.9e-3 in I, Q, U, V; their chi^2 is 50 for 64
points and 11 parameters (per point 0.97, 0.11, 1.18, 0.87), the largest 3.1 sigma, U at 6302.186 Å."""


@dataclass(frozen=True)
class CrispObservation:
    """A spectrum in units of its local continuum.

    Attributes:
        wavelength: (n,) in air [Å].
        stokes: I, Q, U, V, (4, n), in units of `continuum`.
        continuum: in the units of the file.
        polarimetric_noise: rms of Q and U at the two brightest wavelengths, in units of the continuum: four
            values, good to a third; V is left out for its offset.
    """

    wavelength: Tensor
    stokes: Tensor
    continuum: float
    polarimetric_noise: float


def load_crisp(path: str | Path, continuum: float | None = None) -> CrispObservation:
    """Read a FITS file with the rows wavelength, I, Q, U, V.

    Args:
        path: the file; `sbiflow fetch` gets crisp/feobs.fits.
        continuum: in the units of the file; `CONTINUUM_FACTOR` times the largest intensity if not given.

    Raises:
        ValueError: the file has other rows, or values that are not finite.
    """
    data = np.asarray(require("astropy.io.fits", extra="fits").getdata(path), dtype=np.float64)
    if data.ndim != 2 or data.shape[0] != 5 or data.shape[1] < 2:
        raise ValueError(f"{path}: expected 5 rows (wavelength, I, Q, U, V), got shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"{path}: expected finite values, got {int((~np.isfinite(data)).sum())} NaN or inf")
    scale = CONTINUUM_FACTOR * float(data[1].max()) if continuum is None else continuum
    check_positive(scale, "continuum")
    stokes = data[1:] / scale
    brightest = np.argsort(stokes[0])[-2:]
    noise = float(np.sqrt(np.mean(stokes[1:3, brightest] ** 2)))
    return CrispObservation(torch.from_numpy(data[0]), torch.from_numpy(stokes), scale, noise)


def crisp_prior() -> Prior:
    """The eleven parameters of a photospheric spectrum in units of its continuum (no sunspot umbra: B < 3
    kG)."""
    return Prior(
        Uniform("B", 0.0, 3000.0, unit="G"),
        Sine("inclination", unit="rad"),
        PeriodicUniform("azimuth", 0.0, math.pi, unit="rad"),
        Uniform("v_los", -5.0, 5.0, unit="km/s"),
        Uniform("width", 0.015, 0.06, unit="Å"),
        LogUniform("eta0", 1.0, 200.0),
        Uniform("damping", 0.0, 1.0),
        Uniform("S0", 0.0, 1.0),
        Uniform("S1", 0.0, 1.5),
        Uniform("v_mac", 0.0, 4.0, unit="km/s"),
        Uniform("crosstalk", -0.02, 0.02),
    )


BEST_FIT = (704.0, 1.744, 2.437, -1.144, 0.0314, 48.5, 0.242, 0.311, 0.688, 2.38, 0.0057)
"""Least-squares fit of `crisp/feobs.fits` with `NOISE`, in the order of `crisp_prior`; also the truth of
synthetic
spectra. Standard deviations: 34, 0.010, 0.025, 0.055, 0.003, 11, 0.065, 0.020, 0.024, 0.23, 0.0008."""


def crisp_simulator(
    observation: CrispObservation | None = None,
    *,
    prior: Prior | None = None,
    noise_i: float = NOISE[0],
    noise_pol: float | tuple[float, float, float] = NOISE[1:],
    mu: float = 1.0,
) -> MilneEddington:
    """Both lines, I, Q, U, V, at the wavelengths of an observation (by default those of `crisp/feobs.fits`).

    Args:
        observation: whose wavelengths to use.
        prior: `crisp_prior()` if not given.
        noise_i: standard deviation of I in units of the continuum.
        noise_pol: of Q, U and V: one value or three.
        mu: cosine of the heliocentric angle; 1 where it is not known, which only rescales S1.
    """
    q, u, v = (noise_pol,) * 3 if isinstance(noise_pol, int | float) else noise_pol
    return MilneEddington(
        crisp_prior() if prior is None else prior,
        WAVELENGTHS if observation is None else observation.wavelength,
        noise=(noise_i, q, u, v),
        instrument=INSTRUMENT,
        mu=mu,
        grid_step=0.0075,  # good to 1e-6 for the narrowest and strongest line of `crisp_prior`
        precision=torch.float32,
        name="milne-eddington-crisp",
    )


def synthetic_observation(simulator: MilneEddington, generator: torch.Generator | None = None) -> Tensor:
    """A noisy spectrum of `BEST_FIT`, (4, n), for places without the real one."""
    theta = torch.tensor([BEST_FIT], dtype=torch.float64)
    return simulator.observe(simulator.signal(theta), generator)[0]
