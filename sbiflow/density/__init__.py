"""Densities of tables: an unconditional flow, or one conditional on some columns, and how strange a row is to it."""

from sbiflow.density.evidence import DensityWarning, Evidence
from sbiflow.density.fit import fit_density
from sbiflow.density.model import Density
from sbiflow.density.report import DensityReport
from sbiflow.density.scores import OutlierScores, Score, outliers, perturb

__all__ = [
    "Density",
    "DensityReport",
    "DensityWarning",
    "Evidence",
    "OutlierScores",
    "Score",
    "fit_density",
    "outliers",
    "perturb",
]
