"""The power and the level of the whole calibration: a small version of analyses/11_power_of_the_tests.py."""

from __future__ import annotations

import pytest
from scipy import stats

from sbiflow.calibration import CalibrationReport, calibrate
from tests.toys import LinearGaussian, TwoModes

LINE, MODES = LinearGaussian(), TwoModes()
SEEDS = range(5)
DATA = {"log-likelihood", "distance to regression on x"}


def report(proposal: object, simulator: object, seed: int, n: int = 1000) -> CalibrationReport:
    return calibrate(proposal, simulator, n=n, draws=150, seed=seed, alpha=1e-4, progress=False)


@pytest.mark.parametrize("toy", [LINE, MODES], ids=["line", "modes"])
def test_exact_posteriors_pass(toy: object) -> None:
    """Five seeds at alpha = 1e-4: false alarm 5e-4."""
    assert all(report(toy.exact_proposal(), toy, seed).passed for seed in SEEDS)


def test_level_is_kept() -> None:
    """60 exact posteriors at alpha = 0.05: as many rejections have probability 1e-4 or less, together and alone."""
    reports = [report(LINE.exact_proposal(), LINE, seed, n=100) for seed in range(60)]
    most = stats.binom.isf(1e-4, 60, 0.05)
    assert sum(not r.passed_at(0.05) for r in reports) <= most
    for i, test in enumerate(reports[0].ranks.tests):
        assert sum(r.ranks.tests[i].p_value <= 0.05 for r in reports) <= most, test.name
        p = [r.ranks.tests[i].p_value for r in reports]
        assert stats.kstest(p, "uniform").pvalue > 1e-4, test.name


@pytest.mark.parametrize(
    ("toy", "proposal", "caught_by"),
    [
        (LINE, LINE.exact_proposal(0.8), {"HPD coverage", "TARP", *DATA}),
        (LINE, LINE.exact_proposal(1.25), {"HPD coverage", "TARP", *DATA}),
        (LINE, LINE.exact_proposal(1.0, 0.3), {"t0", "t1", "TARP"}),
        (LINE, LINE.prior_proposal(), {"TARP", *DATA}),
        (MODES, MODES.exact_proposal(0.7), {"TARP"}),
    ],
    ids=["narrow", "wide", "bias", "prior", "mode weight"],
)
def test_faults_are_rejected_by_the_tests_that_are_made_for_them(
    toy: object, proposal: object, caught_by: set[str]
) -> None:
    for seed in SEEDS:
        found = report(proposal, toy, seed)
        assert not found.passed
        assert caught_by <= {test.name for test in found.ranks.failures}


def test_prior_as_posterior_passes_plain_sbc() -> None:
    """Five seeds, two parameters and HPD coverage: false alarm 3e-4. Contraction is what sees it."""
    for seed in SEEDS:
        found = report(LINE.prior_proposal(), LINE, seed)
        assert not {"t0", "t1", "HPD coverage"} & {test.name for test in found.ranks.failures}
        assert all(row.misses_information and not row.learned for row in found.contraction)
