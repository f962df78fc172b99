"""Which spline the families "spline_coupling" and "spline_autoregressive" are made of: `FlowConfig.spline`.

Number of parameters of a column, for K bins: linear K, quadratic 2 K - 1, cubic 2 K + 2, rational-quadratic 3 K - 1.
Slope and density are continuous with the quadratic and the rational-quadratic ones. "bounded_rational_quadratic" is at
most less steep and less flat, so that float32 brings points back to 1e-5 (see `Bounded`).
"""

from __future__ import annotations

from collections.abc import Callable

from sbiflow.transforms.cubic_spline import CubicSpline
from sbiflow.transforms.elementwise import Bounded, Elementwise, Spline
from sbiflow.transforms.linear_spline import LinearSpline
from sbiflow.transforms.quadratic_spline import QuadraticSpline


def _bounded(bins: int, half_width: float) -> Elementwise:
    return Bounded(Spline(bins, half_width))


SPLINES: dict[str, Callable[[int, float], Elementwise]] = {  # of bins and half_width
    "rational_quadratic": Spline,
    "bounded_rational_quadratic": _bounded,
    "linear": LinearSpline,
    "quadratic": QuadraticSpline,
    "cubic": CubicSpline,
}
"""The splines by name."""
