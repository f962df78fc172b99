"""Densities of tables against closed forms.

Fixed seeds. The gap is the mean of log p - log q over fresh rows of the truth, an estimate of the KL divergence with a
standard error below 0.01: gates of 0.05 nats leave a right density 4 of them. A Kolmogorov-Smirnov distance of 4,000
draws above 0.045 has a probability of 1e-7 for the exact density; what a short training leaves is within it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import sbiflow as sf
from sbiflow.density import DensityWarning
from sbiflow.density.evidence import Rows, judge
from sbiflow.density.report import report
from sbiflow.density.table import Columns, bijection, read_columns
from sbiflow.priors import LogNormal, Normal, Prior, TruncatedNormal
from sbiflow.training.loop import Training

ROWS, FRESH = 2500, 4000
CONFIG = sf.TrainConfig(steps=200, batch=256, learning_rate=0.02, patience=None)
FLOW = sf.FlowConfig(layers=2, hidden=16, blocks=1, bins=8)


@dataclass(frozen=True)
class Truth:
    """One column whose density, distribution function and draws scipy knows."""

    law: Any
    bounds: Any = None

    def draw(self, n: int, seed: int) -> np.ndarray:
        return self.law.rvs(n, random_state=np.random.default_rng(seed))[:, None]


class TwoModes:
    """0.3 N(-2, 0.4) + 0.7 N(1, 0.6)."""

    parts = ((0.3, stats.norm(-2.0, 0.4)), (0.7, stats.norm(1.0, 0.6)))

    def rvs(self, n: int, random_state: np.random.Generator) -> np.ndarray:
        first, second = (part.rvs(n, random_state=random_state) for _, part in self.parts)
        return np.where(random_state.random(n) < self.parts[0][0], first, second)

    def logpdf(self, x: np.ndarray) -> np.ndarray:
        return np.log(sum(weight * part.pdf(x) for weight, part in self.parts))

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return sum(weight * part.cdf(x) for weight, part in self.parts)


class VonMises:
    """An angle about 5.5 rad, kappa = 2, on [0, 2 pi): its mode is near the seam."""

    own = stats.vonmises(2.0, loc=5.5 - 2 * math.pi)

    def rvs(self, n: int, random_state: np.random.Generator) -> np.ndarray:
        return self.own.rvs(n, random_state=random_state) % (2 * math.pi)

    def logpdf(self, x: np.ndarray) -> np.ndarray:
        return self.own.logpdf(x)

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return self.own.cdf(x) - self.own.cdf(0.0)


TRUTHS = {
    "normal": Truth(stats.norm(3.0, 2.0)),
    "two modes": Truth(TwoModes()),
    "beta": Truth(stats.beta(2.0, 5.0, scale=4.0), (0, 4)),
    "exponential": Truth(stats.expon(scale=2.0), (0, None)),
    "log-normal": Truth(stats.lognorm(1.5), (0, None)),
    "angle": Truth(VonMises(), sf.PeriodicUniform("c0", unit="rad")),
}


@cache
def fitted(name: str) -> sf.Density:
    truth = TRUTHS[name]
    bounds = None if truth.bounds is None else {"c0": truth.bounds}
    with warnings.catch_warnings():
        warnings.simplefilter("error", DensityWarning)
        return sf.fit_density(
            truth.draw(ROWS, 1), bounds=bounds, flow=FLOW, config=CONFIG, progress=False, device="cpu"
        )


@pytest.mark.parametrize("name", TRUTHS)
def test_a_column_against_its_closed_form(name: str) -> None:
    truth, density = TRUTHS[name], fitted(name)
    fresh = truth.draw(FRESH, 2)
    gap = truth.law.logpdf(fresh[:, 0]) - density.log_prob(fresh).numpy()
    assert abs(gap.mean()) < 0.05
    draws = density.sample(FRESH, seed=3)
    assert stats.kstest(draws.theta[:, 0].numpy(), truth.law.cdf).statistic < 0.045
    assert torch.allclose(density.log_prob(draws.theta), draws.log_q, atol=2e-3)
    assert density.warnings == draws.warnings == ()
    held_out = truth.law.logpdf(density.held_out.data[:, 0].numpy()).mean()
    assert abs(density.evidence.log_prob - held_out) < 0.06
    assert (
        abs(-density.entropy - density.evidence.log_prob) < 4 * math.sqrt(2) * density.evidence.log_prob_error
    )


@pytest.mark.parametrize("name", TRUTHS)
def test_a_density_integrates_to_one(name: str) -> None:
    """Over the base space, where every column is about standard normal, or once around the circle."""
    density = fitted(name)
    width = math.pi if density.prior.periodic[0] else 9.0
    edges = torch.linspace(-width, width, 4001, dtype=torch.float64)
    z = ((edges[1:] + edges[:-1]) / 2)[:, None]
    theta, log_jacobian = density.prior.constrain(z)
    mass = (density.log_prob(theta) + log_jacobian).exp().sum() * (edges[1] - edges[0])
    assert abs(float(mass) - 1) < 3e-3


@pytest.mark.parametrize("name", ["beta", "exponential", "log-normal"])
def test_nothing_is_beyond_a_bound(name: str) -> None:
    density = fitted(name)
    low, high = density.prior.marginals[0].support
    draws = density.sample(20_000).theta
    assert bool(((draws > low) & (draws < high)).all())
    assert density.log_prob([[low], [low - 1.0]]).tolist() == [-math.inf] * 2


def test_the_right_map_is_chosen_at_a_bound() -> None:
    assert isinstance(fitted("exponential").prior.marginals[0], TruncatedNormal)
    assert isinstance(fitted("log-normal").prior.marginals[0], LogNormal)


# --- several columns, and conditions


@cache
def line() -> sf.Density:
    """y = 2 x - 1 + 0.5 e, with w = y + 0.3 e', given x."""
    return sf.fit_density(
        line_rows(ROWS, 5),
        ["x", "y", "w"],
        given=["x"],
        flow=FLOW,
        config=CONFIG,
        progress=False,
        device="cpu",
    )


def line_rows(n: int, seed: int) -> Tensor:
    x, e, f = torch.randn(3, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = 2 * x - 1 + 0.5 * e
    return torch.stack([x, y, y + 0.3 * f], -1)


def line_log_prob(rows: Tensor) -> Tensor:
    x, y, w = rows.T
    first = torch.distributions.Normal(2 * x - 1, 0.5).log_prob(y)
    return first + torch.distributions.Normal(y, 0.3).log_prob(w)


def test_a_conditional_density_against_linear_regression() -> None:
    density, fresh = line(), line_rows(FRESH, 6)
    assert density.names == ("y", "w") and density.given == ("x",)
    gap = line_log_prob(fresh) - density.log_prob(fresh[:, 1:], fresh[:, :1])
    assert abs(float(gap.mean())) < 0.05
    one = density.sample(4000, [1.0], seed=1)
    assert one.theta.shape == (4000, 2)
    assert abs(float(one.theta[:, 0].mean()) - 1.0) < 0.08
    assert abs(float(one.theta[:, 0].std()) - 0.5) < 0.06
    many = density.sample(7, [[0.0], [1.0], [-1.0]])
    assert many.theta.shape == (7, 3, 2) and many.log_q.shape == (7, 3)
    assert torch.allclose(density.log_prob(one.theta, [1.0]), one.log_q, atol=2e-3)
    assert density.warnings == ()


def test_conditions_unlike_the_table_are_told_of() -> None:
    assert not line().sample(3, [0.5]).warnings
    assert any("unlike" in text for text in line().sample(3, [30.0]).warnings)


def test_a_flow_of_one_normal_finds_the_covariance() -> None:
    """The "regression" start without conditions is the normal distribution with the data's covariance."""
    law = torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -2.0]).double(), torch.tensor([[2.0, 1.7], [1.7, 2.0]]).double()
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows, fresh = law.sample((ROWS,)), law.sample((FRESH,))
    density = sf.fit_density(rows, flow=FLOW, config=replace(CONFIG, steps=1), progress=False, device="cpu")
    assert abs(float((law.log_prob(fresh) - density.log_prob(fresh)).mean())) < 0.02
    plain = replace(FLOW, start="prior")
    with pytest.warns(DensityWarning, match="draws differ"):
        density = sf.fit_density(
            rows, flow=plain, config=replace(CONFIG, steps=1), progress=False, device="cpu"
        )
    assert float((law.log_prob(fresh) - density.log_prob(fresh)).mean()) > 0.3


# --- evidence


def test_too_few_steps_are_told_of() -> None:
    rows = TRUTHS["two modes"].draw(ROWS, 1)
    with pytest.warns(DensityWarning, match="draws differ"):
        density = sf.fit_density(
            rows, flow=FLOW, config=replace(CONFIG, steps=2), progress=False, device="cpu"
        )
    assert density.evidence.differs and density.warnings and density.sample(5).warnings == density.warnings
    assert "warning: draws differ" in str(density)
    checked = density.check(250, draws=50)
    assert not checked.passed and checked.verdict.startswith("Not calibrated")
    assert checked.c2st.accuracy > 0.55


@pytest.mark.parametrize("conditional", [False, True])
def test_p_values_of_a_right_density_are_uniform(conditional: bool) -> None:
    """Rows drawn from the density itself; Kolmogorov-Smirnov, false alarms 1e-4."""
    density = line() if conditional else fitted("two modes")
    found = []
    for seed in range(15):
        given = torch.randn(100, 1, generator=torch.Generator().manual_seed(seed)).double()
        given = given if conditional else given[:, :0]
        data = density.draw(given, 1, torch.Generator().manual_seed(1000 + seed))[0][0]
        found.append(judge(density, Rows(data, given), seed).p_value)
    assert stats.kstest(found, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("conditional", [False, True])
def test_check_passes_the_densitys_own_rows_and_no_others(conditional: bool) -> None:
    """Level 1e-4 for the rows that are right; the wrong ones are shifted by half of a standard deviation or blurred."""
    density = line() if conditional else fitted("two modes")
    given = torch.randn(400, 1, generator=torch.Generator().manual_seed(1)).double()
    given = given if conditional else given[:, :0]
    data = density.draw(given, 1, torch.Generator().manual_seed(2))[0][0]
    right = report(density, Rows(data, given), 400, 60, 1, 1e-4)
    assert right.passed and right.verdict.startswith("Calibrated") and abs(right.c2st.accuracy - 0.5) < 0.1
    assert not report(density, Rows(data + 0.5 * data.std(0), given), 400, 60, 1, 1e-4).passed
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(3)).double()
    assert not report(density, Rows(data + 0.5 * noise, given), 400, 60, 1, 1e-4).passed


def test_the_rows_held_out_are_of_the_table_and_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    begin = Training.__init__

    def spy(self: Training, model: Any, data: Any, *rest: Any) -> None:
        seen.append(torch.cat([data.z, data.z_validation])[:, 0])
        begin(self, model, data, *rest)

    monkeypatch.setattr(Training, "__init__", spy)
    rows = TRUTHS["normal"].draw(ROWS, 1)
    density = sf.fit_density(rows, flow=FLOW, config=replace(CONFIG, steps=1), progress=False, device="cpu")
    held_out = density.held_out.data[:, 0]
    assert np.isin(held_out.numpy(), rows[:, 0]).all() and len(held_out) == density.evidence.n
    fitted_to = density.prior.constrain(seen[0].double()[:, None])[0][:, 0]
    assert len(fitted_to) + len(held_out) == ROWS
    assert (
        float((held_out[:, None] - fitted_to).abs().amin(1).max()) > 1e-4
    )  # float32 apart would be below 1e-6
    together = torch.cat([held_out, fitted_to]).sort().values
    assert torch.allclose(together, torch.from_numpy(np.sort(rows[:, 0])), atol=1e-5)


# --- counts


def poisson(n: int, seed: int, rates: tuple[float, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.poisson(torch.tensor(rates).double().expand(n, -1), generator=generator)


@cache
def counted(kind: str, dim: int) -> sf.Density:
    """Poisson counts; of two, the second has the rate 1 + the first."""
    first = poisson(ROWS, 1, (3.0,))
    second = torch.poisson(1 + first, generator=torch.Generator().manual_seed(2))
    rows = first if dim == 1 else torch.cat([first, second], 1)
    return sf.fit_density(
        rows, [f"n{i}" for i in range(dim)], counts=[f"n{i}" for i in range(dim)], dequantise=kind, flow=FLOW,
        config=replace(CONFIG, steps=250), progress=False, device="cpu",
    )  # fmt: skip


def table_of_counts(dim: int) -> tuple[Tensor, Tensor]:
    """Every cell that matters, and its exact log-probability."""
    first = torch.arange(12.0).double()
    one = torch.distributions.Poisson(torch.tensor(3.0).double())
    if dim == 1:
        return first[:, None], one.log_prob(first)
    cells = torch.cartesian_prod(first, torch.arange(20.0).double())
    return cells, one.log_prob(cells[:, 0]) + torch.distributions.Poisson(1 + cells[:, 0]).log_prob(
        cells[:, 1]
    )


def mass_of_cells(density: sf.Density, cells: Tensor) -> Tensor:
    """log of the integral of the continuous density over each cell, by Gauss-Legendre; splines have kinks."""
    dim = cells.shape[1]
    at, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(200 if dim == 1 else 16))
    places = torch.cartesian_prod(*[(at + 1) / 2] * dim).reshape(-1, dim)
    weights = torch.cartesian_prod(*[weight / 2] * dim).reshape(-1, dim).prod(1)
    values = density.posterior.log_prob((cells[:, None] + places).reshape(-1, dim), torch.zeros(0))
    return torch.logsumexp(values.reshape(len(cells), -1) + weights.log(), 1)


@pytest.mark.parametrize(
    "kind, dim",
    [("uniform", 1), ("variational", 1), pytest.param("variational", 2, marks=pytest.mark.slow)],
)
def test_the_bound_of_counts(kind: str, dim: int) -> None:
    """Below the cell's mass, higher on average with more draws, and the mass itself in the limit."""
    density = counted(kind, dim)
    cells, exact = table_of_counts(dim)
    p = exact.exp()

    def gap(samples: int) -> tuple[float, float]:
        """Mean over the cells, and its standard error."""
        repeats = (25600 if dim == 1 else 5120) // (samples * 20)
        bounds = density.log_prob(cells.repeat(repeats, 1), samples=samples).reshape(repeats, -1)
        found = (p * (exact - bounds)).sum(1)
        return float(found.mean()), float(found.std() / repeats**0.5)

    mass = mass_of_cells(density, cells)
    own = float((p * (exact - mass)).sum())  # the KL divergence, but for the cells that are left out
    assert -1e-3 < own < 0.05
    (one, one_error), (few, few_error), (many, many_error) = gap(1), gap(8), gap(64)
    many_error = max(many_error, few_error)  # of as many evaluations, but from fewer repeats
    assert one > own - 5 * one_error and few > own - 5 * few_error and many > own - 5 * many_error
    assert one < 0.15 and many - own < 0.005 + 5 * many_error
    if kind == "uniform":
        assert one - few > 4 * math.hypot(one_error, few_error)
    some = torch.arange(len(cells))[p > 0.02]
    limit = density.log_prob(cells[some], samples=1000)
    assert float((limit - mass[some]).abs().max()) < 0.05


def test_variational_dequantisation_has_the_smaller_gap() -> None:
    """With one draw; cells of few counts, which a smooth density does not fill evenly."""
    gaps = {}
    cells, exact = table_of_counts(1)
    for kind in ("uniform", "variational"):
        density, p = counted(kind, 1), exact.exp()
        mass = mass_of_cells(density, cells)
        bounds = density.log_prob(cells.repeat(300, 1), samples=1).reshape(300, -1)
        gaps[kind] = float((p * (mass - bounds)).sum(1).mean())
    assert 0 < gaps["variational"] < gaps["uniform"]


@pytest.mark.parametrize("kind", ["uniform", "variational"])
def test_draws_of_counts_are_counts(kind: str) -> None:
    """Frequencies against the exact ones: total variation of 4,000 exact draws is below 0.03 + 4 sd."""
    density = counted(kind, 1)
    draws = density.sample(FRESH, seed=1)
    n = draws.theta[:, 0]
    assert bool((n == n.round()).all()) and float(n.min()) >= 0
    found = torch.bincount(n.long(), minlength=40)[:12] / FRESH
    assert float((found - table_of_counts(1)[1].exp()).abs().sum() / 2) < 0.06
    assert bool(torch.isfinite(draws.log_q).all()) and density.warnings == ()
    assert density.check(150, draws=40, alpha=1e-4).passed


@pytest.mark.slow
def test_counts_within_bounds_beside_a_real_column_given_another() -> None:
    """Binomial(10, sigmoid(x)) and a normal, given x: the sum of the probabilities of 0 … 10 is at most one."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, ROWS, generator=generator).double()
    chance = torch.sigmoid(x)[:, None] > torch.rand(ROWS, 10, generator=generator)
    rows = torch.stack([x, chance.sum(1).double(), y], -1)
    density = sf.fit_density(
        rows, ["x", "n", "y"], given=["x"], counts=["n"], bounds={"n": (0, 10)}, flow=FLOW, config=CONFIG,
        dequantise="variational", progress=False, device="cpu",
    )  # fmt: skip
    law = torch.distributions.Binomial(10, torch.tensor(0.5).double())
    cells = torch.stack([torch.arange(11.0).double(), torch.full((11,), 0.3).double()], -1)
    exact = law.log_prob(cells[:, 0]) + torch.distributions.Normal(0.0, 1.0).log_prob(cells[:, 1])
    gap = exact - density.log_prob(cells, [0.0], samples=256)
    assert abs(float((law.log_prob(cells[:, 0]).exp() * gap).sum())) < 0.15
    draws = density.sample(3000, [0.0]).theta[:, 0]
    assert float(draws.min()) >= 0 and float(draws.max()) <= 10 and abs(float(draws.mean()) - 5) < 0.3
    assert density.log_prob([[11.0, 0.0], [-1.0, 0.0]], [0.0]).tolist() == [-math.inf] * 2


def test_training_on_counts_goes_on_from_a_checkpoint(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn in a step depends on seed and step only: the same density, bit for bit."""
    rows, config = poisson(400, 1, (3.0,)), replace(CONFIG, steps=20, batch=64)

    def fit(checkpoint: Any = None) -> sf.Density:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DensityWarning)
            return sf.fit_density(
                rows, counts=["c0"], dequantise="variational", flow=FLOW, config=config, progress=False, device="cpu",
                checkpoint=checkpoint, checkpoint_every=5,
            )  # fmt: skip

    whole, update = fit(), Training._update

    def stopped(self: Training, rate: float) -> Tensor:
        if self.step == 12:
            raise RuntimeError("killed")
        return update(self, rate)

    monkeypatch.setattr(Training, "_update", stopped)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "run.safetensors")
    monkeypatch.undo()
    assert torch.equal(fit(tmp_path / "run.safetensors").log_prob(rows[:50]), whole.log_prob(rows[:50]))


# --- files and seeds


@pytest.mark.parametrize("make", [line, lambda: fitted("angle"), lambda: counted("variational", 1)])
def test_a_density_that_was_saved_is_the_same(make: Callable[[], sf.Density], tmp_path: Any) -> None:
    density = make()
    density.save(tmp_path / "model")
    again = sf.Density.load(tmp_path / "model")
    given = [0.3] if density.given else None
    draws = density.sample(50, given, seed=4)
    assert torch.equal(again.sample(50, given, seed=4).theta, draws.theta)
    assert torch.equal(again.log_prob(draws.theta, given), density.log_prob(draws.theta, given))
    assert again.evidence == density.evidence and again.entropy == density.entropy
    assert again.columns == density.columns and torch.equal(again.held_out.data, density.held_out.data)
    assert str(again) == str(density)


def test_files_of_two_densities_are_refused(tmp_path: Any) -> None:
    fitted("angle").save(tmp_path / "one")
    fitted("normal").save(tmp_path / "two")
    (tmp_path / "one/flow").rename(tmp_path / "one/old")
    (tmp_path / "two/flow").rename(tmp_path / "one/flow")
    with pytest.raises(ValueError, match="expected the flow that its"):
        sf.Density.load(tmp_path / "one")
    with pytest.raises(ValueError, match="expected a model made by"):
        sf.Density.load(tmp_path / "one/old")


def test_the_same_seed_gives_the_same_density() -> None:
    rows = poisson(300, 1, (3.0, 2.0))
    config = replace(CONFIG, steps=5, batch=64)

    def fit(seed: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DensityWarning)
            return sf.fit_density(
                rows, counts=["c0", "c1"], flow=FLOW, config=config, seed=seed, progress=False, device="cpu"
            ).log_prob(rows[:20])

    assert torch.equal(fit(1), fit(1))
    assert not torch.equal(fit(1), fit(2))


# --- the boundary

TABLE = torch.rand(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda t: t[:50], {}, "at least 100 rows, got 50"),
        (lambda t: t[:, 0], {}, r"data: expected shape \(n, columns\)"),
        (lambda t: t.index_fill(0, torch.tensor([3]), math.nan), {}, "3 NaN or inf"),
        (lambda t: t.index_fill(1, torch.tensor([1]), 2.5), {}, "constant c1"),
        (
            lambda t: t.index_fill(0, torch.tensor([3, 4]), 1.0),
            {"bounds": {"c0": (0, 1)}},
            "got 2 of 200",
        ),
        (lambda t: -t, {"bounds": {"c2": (0, None)}}, "c2: expected values within .*got 200 of 200"),
        (lambda t: t, {"bounds": {"other": (0, 1)}}, "bounds: expected names among c0, c1, c2, got other"),
        (lambda t: t, {"bounds": {"c0": (1, 0)}}, "expected low < high"),
        (lambda t: t, {"bounds": {"c0": 1.0}}, r"expected \(low, high\) or a marginal"),
        (lambda t: t, {"bounds": {"c0": Normal("c1", 0, 1)}}, "a marginal named 'c0'"),
        (lambda t: t, {"names": ["a", "b"]}, "names: expected 3 distinct names"),
        (lambda t: t, {"given": ["d"]}, "given: expected distinct names among c0, c1, c2, got d"),
        (lambda t: t, {"given": "c0"}, "given: expected a sequence of names"),
        (lambda t: t, {"given": ["c0", "c1", "c2"]}, "expected at least one column to be left"),
        (
            lambda t: t,
            {"given": ["c0"], "counts": ["c0"]},
            "counts: expected columns whose density is wanted",
        ),
        (lambda t: t, {"counts": ["c0"]}, "c0: expected whole numbers in a count, got 200 others"),
        (lambda t: (9 * t).floor() - 1, {"counts": ["c0", "c1", "c2"]}, "c0: expected values within"),
        (lambda t: (1e6 * t).floor(), {"counts": ["c0"]}, "counts up to 100,000"),
        (lambda t: t, {"dequantise": "other"}, "dequantise: expected one of uniform, variational"),
        (
            lambda t: t,
            {"embedding": sf.EmbeddingConfig()},
            'embedding: expected "none" without given columns',
        ),
    ],
)
def test_what_is_no_table_is_refused(change: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.fit_density(change(TABLE.clone()), **options, progress=False)


def test_a_tail_too_heavy_for_a_truncated_normal_is_refused() -> None:
    """Its base coordinate would saturate and the map would not be one to one."""
    column = torch.rand(3000, 1, generator=torch.Generator().manual_seed(0)).double() + 1
    column[0] = 1e9
    columns, rows, _ = read_columns(column, None, None, None)
    with pytest.raises(ValueError, match=r"within 30 spreads of its bound.*subtract the bound"):
        bijection(columns, rows, rows, {"c0": (1, None)})
    assert isinstance(bijection(columns, rows - 1, rows - 1, {"c0": (0, None)}).marginals[0], LogNormal)


def test_whole_numbers_in_a_real_column_are_told_of() -> None:
    rows = poisson(200, 1, (3.0,))
    with pytest.warns(DensityWarning, match=r"c0: expected real numbers, got \d+ distinct values"):
        sf.fit_density(
            rows, flow=FLOW, config=replace(CONFIG, steps=1, batch=64), progress=False, device="cpu"
        )


def test_wrong_questions_are_refused() -> None:
    density = line()
    for given, message in [
        (None, "given: expected values of x, got None"),
        ([1.0, 2.0], "given: expected shape"),
        ([math.nan], "NaN or inf"),
    ]:
        with pytest.raises(ValueError, match=message):
            density.sample(3, given)
    with pytest.raises(ValueError, match="given: expected None for an unconditional density"):
        fitted("normal").log_prob([[1.0]], [1.0])
    with pytest.raises(ValueError, match="data: expected shape"):
        fitted("normal").log_prob([1.0])
    with pytest.raises(ValueError, match="whole numbers"):
        counted("uniform", 1).log_prob([[0.5]])
    assert len(fitted("normal").log_prob(torch.zeros(0, 1))) == 0


def test_names_are_those_of_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(TABLE.numpy(), columns=["a", "b", "c"])
    columns, rows, given = read_columns(frame, None, ["b"], None)
    assert (
        columns == Columns(("a", "c"), ("b",))
        and rows.shape == (200, 2)
        and torch.equal(given[:, 0], TABLE[:, 1])
    )


def test_the_bijection_is_that_of_the_fitted_rows() -> None:
    columns, rows, _ = read_columns(TABLE, None, None, None)
    prior = bijection(columns, rows, rows[:100], {"c1": (0, 1), "c2": (None, 1)})
    assert isinstance(prior, Prior) and isinstance(prior.marginals[2], TruncatedNormal)
    assert prior.marginals[0].mean == pytest.approx(float(TABLE[:100, 0].mean()))  # type: ignore[attr-defined]
    assert prior.marginals[1].support == (0.0, 1.0) and prior.marginals[2].support == (-math.inf, 1.0)
