"""Ground-based interferometers: where they are, how they respond, when a wave arrives, and where it comes from.

All directions are those of the source (the wave travels the other way). Right ascension and declination are
turned into the Earth-fixed frame by the Greenwich sidereal time alone: longitude = ra - gmst, as in LAL.
All angles are tensors [rad] that broadcast against each other; the results have the broadcast shape, the dtype and
the device of the angles. Nothing here waits for the device.

Sources: Anderson et al. 2001 (Phys. Rev. D 63, 042003), Sec. II and Appendix B, for the antenna patterns and the
geometry of the detectors; Aoki et al. 1982 (A&A 105, 359) for the sidereal time.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SPEED_OF_LIGHT = 299_792_458.0
"""[m/s]"""

Vector = tuple[float, float, float]
_DAY = 86_400.0
_GPS_EPOCH = -7300.5  # 1980-01-06 00:00 UTC in days from J2000.0, 2000-01-01 12:00
# fmt: off
_LEAP_SECONDS = (  # GPS times of the midnights that followed one, 1981-07-01 to 2017-01-01; none since (2026)
    46_828_801, 78_364_802, 109_900_803, 173_059_204, 252_028_805, 315_187_206, 346_723_207, 393_984_008,
    425_520_009, 457_056_010, 504_489_611, 551_750_412, 599_184_013, 820_108_814, 914_803_215, 1_025_136_016,
    1_119_744_017, 1_167_264_018,
)
# fmt: on


@dataclass(frozen=True)
class Detector:
    """An interferometer whose arms are short against the wave.

    Attributes:
        name: two characters, as in the names of data files.
        vertex: position [m] in the Earth-fixed frame (x to longitude 0, z to the north pole; WGS-84).
        response: (3, 3), symmetric: half the difference of the arms' dyads, (x x - y y) / 2.
    """

    name: str
    vertex: Vector
    response: tuple[Vector, Vector, Vector]


def from_arms(name: str, vertex: Vector, x_arm: Sequence[float], y_arm: Sequence[float]) -> Detector:
    """A detector from the directions (Earth-fixed unit vectors) of its arms.

    The response is rounded to single precision, as LAL keeps it, so that patterns agree with published analyses
    to rounding; the difference of 1e-8 is far below what surveys know of the arms.

    Raises:
        ValueError: an arm that is no unit vector (to 1e-6).
    """
    x, y = np.asarray(x_arm, dtype=np.float64), np.asarray(y_arm, dtype=np.float64)
    for arm, label in ((x, "x_arm"), (y, "y_arm")):
        if arm.shape != (3,) or not abs(float(np.linalg.norm(arm)) - 1) < 1e-6:
            raise ValueError(f"{label}: expected a unit vector of 3 numbers, got {arm.tolist()}")
    tensor = (0.5 * (np.outer(x, x) - np.outer(y, y))).astype(np.float32).tolist()
    first, second, third = ((float(a), float(b), float(c)) for a, b, c in tensor)
    return Detector(name, vertex, (first, second, third))


# Vertices and arms: LIGO-T980044 (Hanford, Livingston) and VIR-0148A (Virgo), as in LAL's LALDetectors.h.
H1 = from_arms(
    "H1",
    (-2161414.92636, -3834695.17889, 4600350.22664),
    (-0.22389266154, 0.79983062746, 0.55690487831),
    (-0.91397818574, 0.02609403989, -0.40492342125),
)
L1 = from_arms(
    "L1",
    (-74276.0447238, -5496283.71971, 3224257.01744),
    (-0.95457412153, -0.14158077340, -0.26218911324),
    (0.29774156894, -0.48791033647, -0.82054461286),
)
V1 = from_arms(
    "V1",
    (4546374.09900, 842989.697626, 4378576.96241),
    (-0.70045821479, 0.20848948619, 0.68256166277),
    (-0.05379255368, -0.96908180549, 0.24080451708),
)
_KNOWN = {known.name: known for known in (H1, L1, V1)}


def detector(name: str) -> Detector:
    """The detector of a name, e.g. `detector("H1")`.

    Raises:
        ValueError: none of that name; the message has those that are known.
    """
    if name not in _KNOWN:
        raise ValueError(f"detector: expected one of {', '.join(_KNOWN)}, got {name!r}")
    return _KNOWN[name]


def greenwich_sidereal_time(gps: float) -> float:
    """Greenwich mean sidereal time [rad], in [0, 2 pi), at a GPS time [s]; UT1 is taken to be UTC, as in LAL.

    Aoki et al. 1982, Eq. 13, with 67310.54841 s = 24110.54841 s + 12 h, since days are counted from noon. The whole
    turns of the day's fraction are dropped before anything is added, which keeps 1e-13 rad; LAL goes through a
    Julian day in double precision, which rounds to 1.5e-9 rad. A leap second counts as the first of the next day.

    Raises:
        ValueError: not a finite time from 1980-01-06 on.
    """
    if not 0 <= gps < math.inf:
        raise ValueError(f"gps: expected finite seconds since 1980-01-06, got {gps}")
    seconds = gps - bisect.bisect_right(_LEAP_SECONDS, gps)
    days, within = divmod(seconds, _DAY)
    centuries = (days + within / _DAY + _GPS_EPOCH) / 36_525
    polynomial = 67_310.54841 + centuries * (8_640_184.812866 + centuries * (0.093104 - 6.2e-6 * centuries))
    turns = polynomial % _DAY + within + (_GPS_EPOCH % 1) * _DAY
    return 2 * math.pi * ((turns / _DAY) % 1)


def antenna_patterns(
    detector: Detector, ra: Tensor, dec: Tensor, psi: Tensor, gmst: float | Tensor
) -> tuple[Tensor, Tensor]:
    """F+ and Fx of a wave from (ra, dec) with polarisation angle psi at the sidereal time gmst, each broadcast.

    With X towards west and Y towards north on the sky for psi = 0 and D the response, F+ = X.D.X - Y.D.Y and
    Fx = 2 X.D.Y, turned by 2 psi (Anderson et al. 2001, Eqs. B7-B9; LAL's XLALComputeDetAMResponse).
    """
    hour_angle = gmst - ra
    sin_h, cos_h, sin_d, cos_d = hour_angle.sin(), hour_angle.cos(), dec.sin(), dec.cos()
    west = (-sin_h, -cos_h, torch.zeros_like(sin_h))
    north = (-cos_h * sin_d, sin_h * sin_d, cos_d)
    at_zero = _between(detector, west, west) - _between(detector, north, north)
    at_quarter = 2 * _between(detector, west, north)
    sin_p, cos_p = (2 * psi).sin(), (2 * psi).cos()
    return at_zero * cos_p + at_quarter * sin_p, at_quarter * cos_p - at_zero * sin_p


def arrival_delay(detector: Detector, ra: Tensor, dec: Tensor, gmst: float | Tensor) -> Tensor:
    """Time [s] from the passage at the geocentre to that at the detector: -n.r / c, negative if it comes first."""
    longitude = ra - gmst
    source = (dec.cos() * longitude.cos(), dec.cos() * longitude.sin(), dec.sin())
    return -_dot(source, detector.vertex) / SPEED_OF_LIGHT


def baseline_to_sky(
    zenith: Tensor, azimuth: Tensor, first: Detector, second: Detector, gmst: float | Tensor
) -> tuple[Tensor, Tensor]:
    """(ra in [0, 2 pi), dec) of a direction given in the frame of a baseline.

    The polar axis points from the first detector to the second, so that the arrival times differ by

        t_second - t_first = -|baseline| / c * cos(zenith):

    a source at zenith 0 is seen by the second detector first. Azimuth 0 is the half-plane that contains the
    Earth's north pole; it grows counter-clockwise about the axis. The frame is a rotation of the Earth-fixed one:
    an isotropic sky is uniform in (cos zenith, azimuth).

    Raises:
        ValueError: both detectors at the same place.
    """
    x, y, z = _baseline_frame(first, second)
    along_x, along_y, along_z = zenith.sin() * azimuth.cos(), zenith.sin() * azimuth.sin(), zenith.cos()
    east, north, up = (along_x * x[i] + along_y * y[i] + along_z * z[i] for i in range(3))
    # atan2 keeps its precision at the poles, where asin loses half the digits
    ra = torch.remainder(torch.atan2(north, east) + gmst, 2 * math.pi)
    return ra, torch.atan2(up, torch.hypot(east, north))


def sky_to_baseline(
    ra: Tensor, dec: Tensor, first: Detector, second: Detector, gmst: float | Tensor
) -> tuple[Tensor, Tensor]:
    """(zenith in [0, pi], azimuth in [0, 2 pi)) in the frame of a baseline: the inverse of `baseline_to_sky`."""
    longitude = ra - gmst
    source = (dec.cos() * longitude.cos(), dec.cos() * longitude.sin(), dec.sin())
    along_x, along_y, along_z = (_dot(source, axis) for axis in _baseline_frame(first, second))
    azimuth = torch.remainder(torch.atan2(along_y, along_x), 2 * math.pi)
    return torch.atan2(torch.hypot(along_x, along_y), along_z), azimuth


def _baseline_frame(first: Detector, second: Detector) -> tuple[Vector, Vector, Vector]:
    """Earth-fixed unit vectors x, y, z: z from the first detector to the second, the north pole in the plane x, z."""
    baseline = np.subtract(second.vertex, first.vertex)
    length = float(np.linalg.norm(baseline))
    if not length > 0:
        raise ValueError(
            f"detectors: expected two places, got {first.name} and {second.name} at the same one"
        )
    z = baseline / length
    pole = np.array([0.0, 0.0, 1.0])
    x = pole - z[2] * z
    if np.linalg.norm(x) < 1e-9:  # a baseline along the Earth's axis: longitude 0 instead of the pole
        x = np.array([1.0, 0.0, 0.0]) - z[0] * z
    x = x / np.linalg.norm(x)
    return _vector(x), _vector(np.cross(z, x)), _vector(z)


def _vector(values: np.ndarray) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])


# Sums of scaled tensors rather than matrix products: no constant has to be copied to the device.


def _dot(direction: Sequence[Tensor], vector: Vector) -> Tensor:
    return direction[0] * vector[0] + direction[1] * vector[1] + direction[2] * vector[2]


def _between(detector: Detector, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """left . response . right"""
    rows = [_dot(right, row) for row in detector.response]
    return left[0] * rows[0] + left[1] * rows[1] + left[2] * rows[2]
