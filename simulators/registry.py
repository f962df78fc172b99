"""The simulators that the command line knows by name, and how each reads its observations.

To add one: a line in `BUILT_IN`. Anything else is reached as `package.module:attribute`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from sbiflow.optional import require
from simulators.benchmark import TASKS, task
from simulators.crisp import crisp_simulator, load_crisp
from simulators.gravitational_waves.setups import eight_parameters, five_parameters
from simulators.stokes import MilneEddington

_WAVELENGTH_TOLERANCE = 2e-4  # Å: 10 m/s, and twice what `simulators.crisp.WAVELENGTHS` is rounded to


@dataclass(frozen=True)
class BuiltIn:
    """A simulator with a name.

    Attributes:
        make: builds it.
        recorded: its `name`, as stores and models record it.
        about: what it simulates, one line.
        observation: what a file with an observation has to contain, one line.
        read: (path, simulator) -> x (*x_shape) for the formats that need more than reading numbers; None
            for a path that it leaves to `sbiflow.observation`.
    """

    make: Callable[[], Any]
    recorded: str
    about: str
    observation: str
    read: Callable[[Path, MilneEddington], np.ndarray | None] = lambda path, simulator: None


def read_crisp(path: Path, simulator: MilneEddington) -> np.ndarray | None:
    """I, Q, U, V (4, n) in units of the continuum from a FITS file with the rows wavelength [Å], I, Q, U, V.

    Raises:
        ValueError: no such file, not a complete FITS file, another shape, NaN, or other wavelengths than the
            simulator's.
    """
    if path.suffix.lower() != ".fits":
        return None
    _check_fits(path)
    found = load_crisp(path)
    expected = simulator.wavelengths
    same = found.wavelength.shape == expected.shape
    if not same or bool(((found.wavelength - expected).abs() > _WAVELENGTH_TOLERANCE).any()):
        raise ValueError(
            f"{path}: expected {_grid(expected.tolist())}, got {_grid(found.wavelength.tolist())}; for another "
            "grid pass --simulator MODULE:NAME with NAME = crisp_simulator(load_crisp(PATH))"
        )
    return found.stokes.numpy()


def _check_fits(path: Path) -> None:
    """Raise ValueError unless the file is there and complete; from memory, since astropy would leave it open."""
    if not path.is_file():
        raise ValueError(f"{path}: expected an observation, got no such file")
    fits = require("astropy.io.fits", extra="fits")
    try:
        with warnings.catch_warnings(), fits.open(io.BytesIO(path.read_bytes())) as units:
            warnings.filterwarnings("error", message=".*truncated")  # astropy would only warn
            for unit in units:
                np.array(unit.data)  # reads it
    except (OSError, TypeError, UserWarning) as error:  # a truncated file is any of them
        raise ValueError(f"{path}: expected a complete FITS file, got {error}") from None


def _grid(wavelengths: list[float]) -> str:
    return f"{len(wavelengths)} wavelengths {wavelengths[0]:.4f} to {wavelengths[-1]:.4f} Å"


def _benchmark_task(name: str) -> BuiltIn:
    shape = task(name).x_shape
    return BuiltIn(
        partial(task, name),
        name,
        f"the task {name.replace('_', ' ')} of the SBI benchmark (Lueckmann et al. 2021)",
        f"x {shape} in the benchmark's order",
    )


def _binary(make: Callable[[], Any], parameters: int, about: str) -> BuiltIn:
    return BuiltIn(
        make,
        f"binary-{parameters}-parameters",
        f"black holes in one detector of Advanced LIGO's design: {about}",
        "x (992,): what `simulator.prepare` makes of whitened strain (1, 1, 2, 492) at 20 to 511 Hz",
    )


BUILT_IN: Mapping[str, BuiltIn] = MappingProxyType(
    {
        "stokes": BuiltIn(
            crisp_simulator,
            "milne-eddington-crisp",
            "Milne-Eddington I, Q, U, V of Fe I 6301.5 and 6302.5 Å as seen by SST/CRISP",
            "FITS with the rows wavelength [Å], I, Q, U, V in any unit of intensity (as crisp/feobs.fits), or "
            "I, Q, U, V (4, 16) in units of the continuum",
            read_crisp,
        ),
        "stokes-paper": BuiltIn(
            MilneEddington.paper_case,
            "milne-eddington-paper",
            "Stokes I of one line at 30 wavelengths, the benchmark of Díaz Baso et al. (2022)",
            "I (30,) at 6300.9 + 0.04 i Å",
        ),
        "gw-5": _binary(five_parameters, 5, "masses, phase, time and distance of a face-on binary"),
        "gw-8": _binary(eight_parameters, 8, "the same with aligned spins and inclination"),
        **{name: _benchmark_task(name) for name in TASKS},
    }
)
