"""Is the posterior any good? Tests on fresh simulations, Markov-chain references, alarms, one report.

Everything here speaks the contracts of `sbiflow.contracts` only: it judges a flow, a Markov chain or an exact
posterior alike.
"""

from sbiflow.calibration.comparison import ComparisonRow, ComparisonTable, compare
from sbiflow.calibration.contraction import Contraction
from sbiflow.calibration.coverage import coverage_test, hpd_mass
from sbiflow.calibration.ecdf import EcdfBand, ecdf_p_value, simultaneous_band
from sbiflow.calibration.predictive import PredictiveCheck, predictive_check
from sbiflow.calibration.reference import Reference, emcee_reference
from sbiflow.calibration.report import CalibrationReport
from sbiflow.calibration.run import calibrate
from sbiflow.calibration.sbc import RankTest, SbcResult, rank_test, sbc_ranks

__all__ = [
    "CalibrationReport",
    "ComparisonRow",
    "ComparisonTable",
    "Contraction",
    "EcdfBand",
    "PredictiveCheck",
    "RankTest",
    "Reference",
    "SbcResult",
    "calibrate",
    "compare",
    "coverage_test",
    "ecdf_p_value",
    "emcee_reference",
    "hpd_mass",
    "predictive_check",
    "rank_test",
    "sbc_ranks",
    "simultaneous_band",
]
