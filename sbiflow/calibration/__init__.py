"""Is the posterior any good? Tests on fresh simulations, Markov-chain references, alarms, one report.

Everything here speaks the contracts of `sbiflow.contracts` only: it judges a flow, a Markov chain or an exact
posterior alike.
"""

from sbiflow.calibration.c2st import C2stResult, c2st
from sbiflow.calibration.comparison import (
    ComparisonRow,
    ComparisonTable,
    ReferenceDraws,
    ReferenceFloor,
    compare,
    reference_floor,
)
from sbiflow.calibration.contraction import Contraction
from sbiflow.calibration.coverage import coverage_test, hpd_mass
from sbiflow.calibration.ecdf import EcdfBand, ecdf_p_value, simultaneous_band
from sbiflow.calibration.jsd import JsdRow, MarginalJsd, marginal_jsd
from sbiflow.calibration.lc2st import LocalC2stResult, local_c2st
from sbiflow.calibration.mmd import MmdResult, mmd
from sbiflow.calibration.nested import NestedReference, nested_reference
from sbiflow.calibration.pp import PpPlot, pp_plot
from sbiflow.calibration.predictive import PredictiveCheck, predictive_check
from sbiflow.calibration.reference import Reference, emcee_reference
from sbiflow.calibration.report import CalibrationReport
from sbiflow.calibration.run import calibrate
from sbiflow.calibration.sbc import RankTest, SbcResult, rank_test, sbc_ranks
from sbiflow.calibration.tarp import area_to_curve, tarp_ranks, tarp_test

__all__ = [
    "C2stResult",
    "CalibrationReport",
    "ComparisonRow",
    "ComparisonTable",
    "Contraction",
    "EcdfBand",
    "JsdRow",
    "LocalC2stResult",
    "MarginalJsd",
    "MmdResult",
    "NestedReference",
    "PpPlot",
    "PredictiveCheck",
    "RankTest",
    "Reference",
    "ReferenceDraws",
    "ReferenceFloor",
    "SbcResult",
    "area_to_curve",
    "c2st",
    "calibrate",
    "compare",
    "coverage_test",
    "ecdf_p_value",
    "emcee_reference",
    "hpd_mass",
    "local_c2st",
    "marginal_jsd",
    "mmd",
    "nested_reference",
    "pp_plot",
    "predictive_check",
    "rank_test",
    "reference_floor",
    "sbc_ranks",
    "simultaneous_band",
    "tarp_ranks",
    "tarp_test",
]
