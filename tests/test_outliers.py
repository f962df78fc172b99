"""Scores of outliers against closed forms: densities that are normal, so that every score is a known function.

Fixed seeds; false alarms of each statistical test are 1e-4.
"""

from __future__ import annotations

import math
import warnings
from functools import cache

import pytest
import torch
from scipy import stats
from torch import Tensor

import sbiflow as sf
from sbiflow.density import DensityWarning
from sbiflow.density.scores import Score

DIM, PAIRS, ROWS = 24, 2, 3000
FLOW = sf.FlowConfig("maf", layers=1, hidden=24, blocks=1)  # one step of training: the normal that was fitted
CONFIG = sf.TrainConfig(steps=1, batch=64, validation=0.2)
CORRELATION = 0.8


def rows_of(n: int, seed: int, correlation: float = CORRELATION) -> Tensor:
    """Normal rows of unit variance: the first columns in correlated pairs, the others independent."""
    rows = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for i in range(0, 2 * PAIRS, 2):
        rows[:, i] = correlation * rows[:, i + 1] + math.sqrt(1 - correlation**2) * rows[:, i]
    return rows


def fit(rows: Tensor) -> sf.Density:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DensityWarning)
        return sf.fit_density(rows, flow=FLOW, config=CONFIG, progress=False, device="cpu")


@cache
def densities() -> tuple[sf.Density, sf.Density]:
    """Of the correlated rows, and of the same columns without correlations."""
    return fit(rows_of(ROWS, 1)), fit(sf.perturb(rows_of(ROWS, 2), 1.0, seed=3))


def law(correlation: float) -> torch.distributions.MultivariateNormal:
    covariance = torch.eye(DIM).double()
    for i in range(0, 2 * PAIRS, 2):
        covariance[i, i + 1] = covariance[i + 1, i] = correlation
    return torch.distributions.MultivariateNormal(torch.zeros(DIM).double(), covariance)


def test_scores_are_those_of_the_closed_form() -> None:
    """A fit to 1,900 rows misses the log-density of a row by about the root of its 300 parameters over their number."""
    density, background = densities()
    rows = rows_of(500, 4)
    found = sf.outliers(density, rows, background)
    own, other = law(CORRELATION).log_prob(rows), law(0.0).log_prob(rows)
    entropy = float(law(CORRELATION).entropy())
    assert found.ratio is not None
    for values, exact in [
        (found.likelihood.values, -own),
        (found.ratio.values, other - own),
        (found.typicality.values, (-own - entropy).abs()),
    ]:
        assert float((values - exact).square().mean().sqrt()) < 1.0
        assert float(torch.corrcoef(torch.stack([values, exact]))[0, 1]) > 0.8
    assert torch.equal(found.likelihood.values, -found.log_prob) and found.warnings == ()


def test_p_values_of_ordinary_rows_are_uniform() -> None:
    """Two samples: the p-values are ranks among held-out rows, which are a sample too."""
    density, background = densities()
    found = sf.outliers(density, rows_of(2000, 5), background)
    for score in (found.likelihood, found.ratio, found.typicality):
        assert score is not None
        assert stats.ks_2samp(score.values, score.null).pvalue > 1e-4
        assert float(score.p_value.min()) >= 1 / (1 + len(score.null)) and float(score.p_value.max()) <= 1


def test_what_each_score_sees() -> None:
    """Pairs that are not correlated beside quieter columns, so that the density is higher; the mode; a row far away."""
    density, background = densities()
    broken = rows_of(400, 6, correlation=0.0)
    broken[:, 2 * PAIRS :] *= 0.6
    found = sf.outliers(density, broken, background)
    assert found.ratio is not None
    assert float(found.likelihood.p_value.median()) > 0.5  # more ordinary than ordinary rows
    assert float((found.ratio.p_value < 0.05).double().mean()) > 0.4
    mode = sf.outliers(density, torch.zeros(1, DIM))
    assert mode.ratio is None
    assert float(mode.likelihood.p_value) > 0.99 and float(mode.typicality.p_value) < 0.01
    far = sf.outliers(density, 20 * rows_of(1, 7, correlation=-CORRELATION), background)
    for score in (far.likelihood, far.typicality, far.ratio):
        assert score is not None and float(score.p_value) == 1 / (1 + len(score.null))
    assert "likelihood ratio: " in str(found) and "likelihood ratio: " not in str(mode)


def test_p_values_count_ties_and_infinities() -> None:
    score = Score(torch.tensor([0.0, 1.0, 2.5, 3.0, math.inf, -math.inf]), torch.tensor([1.0, 2.0, 3.0]))
    assert score.p_value.tolist() == [1.0, 1.0, 0.5, 0.5, 0.25, 1.0]


def test_rows_outside_of_the_bounds_are_as_strange_as_can_be() -> None:
    bounded = torch.rand(500, 2, generator=torch.Generator().manual_seed(1)).double()
    options = {"bounds": {"c0": (0, 1), "c1": (0, 1)}, "flow": FLOW, "config": CONFIG, "progress": False}
    density, background = sf.fit_density(bounded, **options), sf.fit_density(bounded, **options, seed=1)
    found = sf.outliers(density, [[1.5, 0.5]], background)
    for score in (found.likelihood, found.ratio, found.typicality):
        assert score is not None and float(score.p_value) == 1 / (1 + len(score.null))


def test_a_conditional_density_scores_rows_given_others() -> None:
    rows = rows_of(1000, 7)[:, :2].flip(1)
    density = sf.fit_density(
        rows, ["x", "y"], given=["x"], flow=FLOW, config=CONFIG, progress=False, device="cpu"
    )
    found = sf.outliers(density, [[2.0], [-2.0]], given=[2.0])  # y is 0.8 x, give or take 0.6
    assert float(found.likelihood.p_value[0]) > 0.3 and float(found.likelihood.p_value[1]) < 0.01


def test_perturbed_rows_keep_their_columns_and_lose_their_correlations() -> None:
    rows = rows_of(4000, 8)
    half = sf.perturb(rows, 0.5, seed=1)
    changed = (half != rows).double().mean()
    assert abs(float(changed) - 0.5) < 4.5 * 0.5 / math.sqrt(rows.numel())
    for before, after in zip(rows.T, half.T, strict=True):
        assert bool(torch.isin(after, before).all())
        assert stats.ks_2samp(before, after).pvalue > 1e-4
    assert abs(float(torch.corrcoef(half.T)[0, 1]) - 0.25 * CORRELATION) < 0.08
    assert torch.equal(half, sf.perturb(rows, 0.5, seed=1)) and not torch.equal(
        half, sf.perturb(rows, 0.5, seed=2)
    )


def test_wrong_questions_are_refused() -> None:
    density, _ = densities()
    other = fit(rows_of(300, 9)[:, :3])
    with pytest.raises(ValueError, match="background: expected a density of"):
        sf.outliers(density, torch.zeros(1, DIM), other)
    with pytest.raises(ValueError, match="data: expected shape"):
        sf.outliers(density, torch.zeros(1, DIM + 1))
    for rate in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"rate: expected a share in \(0, 1\]"):
            sf.perturb(torch.zeros(3, 2), rate)
    with pytest.raises(ValueError, match="NaN or inf"):
        sf.perturb(torch.full((3, 2), math.nan))
