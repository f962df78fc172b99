"""Arrays in, matplotlib `Figure` out. Nothing of sbiflow is imported, no global figure state is touched.

Every figure is made with `matplotlib.figure.Figure`, so that no display is needed and nothing stays open;
`figure.savefig(path)` writes it.
"""

from sbiflow.plots.calibration import coverage_curve, pp_curves, rank_ecdf
from sbiflow.plots.corners import Overlay, corner_figure, interval_text
from sbiflow.plots.integral import convergence, weights_by_proposal
from sbiflow.plots.spectrum import fit_residuals
from sbiflow.plots.style import BLUE, GREEN, GREY, ORANGE, RED, axis_label
from sbiflow.plots.training import training_curve
from sbiflow.plots.weights import weight_histogram

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "Overlay",
    "axis_label",
    "convergence",
    "corner_figure",
    "coverage_curve",
    "fit_residuals",
    "interval_text",
    "pp_curves",
    "rank_ecdf",
    "training_curve",
    "weight_histogram",
    "weights_by_proposal",
]
