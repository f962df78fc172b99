"""Arrays in, matplotlib `Figure` out. Nothing of sbiflow is imported, no global figure state is touched.

Every figure is made with `matplotlib.figure.Figure`, so that no display is needed and nothing stays open;
`figure.savefig(path)` writes it. matplotlib is slow to import: a figure's module is loaded when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbiflow.plots.calibration import coverage_curve, pp_curves, rank_ecdf
    from sbiflow.plots.corners import Overlay, corner_figure, interval_text
    from sbiflow.plots.integral import convergence, weights_by_proposal
    from sbiflow.plots.maps import Panel, map_figure
    from sbiflow.plots.spectrum import fit_residuals
    from sbiflow.plots.style import BLUE, GREEN, GREY, ORANGE, RED, axis_label
    from sbiflow.plots.training import training_curve
    from sbiflow.plots.weights import weight_histogram

_MODULES = ("calibration", "corners", "integral", "maps", "spectrum", "style", "training", "weights")

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "Overlay",
    "Panel",
    "axis_label",
    "convergence",
    "corner_figure",
    "coverage_curve",
    "fit_residuals",
    "interval_text",
    "map_figure",
    "pp_curves",
    "rank_ecdf",
    "training_curve",
    "weight_histogram",
    "weights_by_proposal",
]


def __getattr__(name: str) -> Any:
    """One of `__all__`, from the module that has it."""
    if name in __all__:
        for module in _MODULES:
            found = getattr(importlib.import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
