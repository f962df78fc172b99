"""The integrator as a whole: right within its errors, within its budget, and honest where it is not right."""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import i0

from sbiflow.integrate import Integrator, IntegratorConfig, integrate, with_histogram
from sbiflow.integrate import run as run_module
from sbiflow.integrate.domain import Domain
from tests.integrate import functions
from tests.integrate.small import config, cube

GRID, FLOW, AUTO = (config(method=method, rows=20_000) for method in ("grid", "flow", "auto"))
CONFIGS = {"grid": GRID, "flow": FLOW, "auto": AUTO}


def run(f, bounds, budget=4000, seed=1, config=AUTO, **options):
    return integrate(f, bounds, budget, seed=seed, config=config, progress=False, **options)


def pull(result, truth: float) -> float:
    return (result.mean - truth) / result.sdev


class Counted:
    """Counts the rows that f is evaluated at."""

    def __init__(self, f):
        self.f, self.rows = f, 0

    def __call__(self, x):
        self.rows += len(x)
        return self.f(x)


def ridge(x: np.ndarray) -> np.ndarray:
    """A Gaussian of correlation 0.9 in two dimensions."""
    d = (x - 0.5) / 0.1
    return np.exp(-0.5 * (d[:, 0] ** 2 - 1.8 * d[:, 0] * d[:, 1] + d[:, 1] ** 2) / 0.19)


RIDGE = 2 * math.pi * 0.01 * math.sqrt(0.19)  # but for 1e-6 outside


# --- the statistical contract


def gates(repeats: int, rate: float = 1e-3) -> tuple[float, float]:
    """Of the mean square of pulls by 32 nets, at a two-sided false-alarm rate."""
    draws = (np.random.default_rng(1).standard_t(31, (20_000, repeats)) ** 2).mean(1)
    low, high = np.quantile(draws, (rate / 2, 1 - rate / 2))
    return float(low), float(high)


@pytest.mark.parametrize("method, repeats, budget", (("grid", 60, 3000), ("flow", 24, 3000)))
def test_pulls_and_coverage(method, repeats, budget):
    """Pulls as Student's t (false-alarm rate 1e-3); the gate rejects errors that are half as large."""
    results = [run(ridge, cube(2), budget, seed, CONFIGS[method]) for seed in range(repeats)]
    pulls = np.array([pull(result, RIDGE) for result in results])
    low, high = gates(repeats)
    assert 0.6 * low < (pulls**2).mean() < high  # the tail that is added to the error may make pulls smaller
    assert (4 * pulls**2).mean() > high  # halved errors are found out
    assert stats.binom.cdf(int((np.abs(pulls) < 2).sum()), repeats, 0.945) > 1e-3
    assert abs(pulls.mean()) < 4 * pulls.std() / math.sqrt(repeats)
    assert {result.method for result in results} == {method}
    assert sum(result.reliable for result in results) >= 0.9 * repeats


def correlated8(x: np.ndarray) -> np.ndarray:
    """corrgauss8 of the issue: N(1/2, 0.08² R) with equicorrelation 0.95; the integral is one."""
    d = (x - 0.5) / 0.08
    inverse = (np.eye(8) - 0.95 / (1 + 7 * 0.95)) / 0.05
    log_det = 7 * math.log(0.05) + math.log(1 + 7 * 0.95)
    norm = 4 * math.log(2 * math.pi) + 8 * math.log(0.08) + 0.5 * log_det
    return np.exp(-0.5 * np.einsum("ni,ij,nj->n", d, inverse, d) - norm)


def right_or_warned(result, truth: float) -> bool:
    return not result.reliable or abs(pull(result, truth)) < 4


@pytest.mark.parametrize("method, budget", (("grid", 20_000), ("auto", 8000)))
def test_wrong_answers_say_so(method, budget):
    """vegas is wrong by 80 % here, with a chi²/dof that is fine."""
    for seed in range(3 if method == "auto" else 10):
        assert right_or_warned(run(correlated8, cube(8), budget, seed, CONFIGS[method]), 1.0)


@pytest.mark.slow
def test_wrong_answers_say_so_with_the_default_flow():
    results = [run(correlated8, cube(8), 20_000, seed, IntegratorConfig()) for seed in range(10)]
    assert all(right_or_warned(result, 1.0) for result in results)


@pytest.mark.parametrize("seed", range(4))
def test_two_modes_are_found_or_it_says_so(seed):
    """A mode of a tenth of the weight, far away; it fills 2e-3 of the volume, so that a few points meet it."""

    def f(x):
        log_f = [-0.5 * (((x - c) / s) ** 2).sum(1) - 3 * math.log(2 * math.pi) / 2 - 3 * math.log(s) + math.log(w)
                 for c, s, w in ((0.3, 0.05, 0.9), (0.8, 0.05, 0.1))]  # fmt: skip
        return np.exp(np.logaddexp(*log_f))

    assert right_or_warned(run(f, cube(3), 20_000, seed), 1.0)


# --- reproducible


def test_the_same_seed_gives_the_same_answer():
    state = torch.random.get_rng_state()
    first = run(ridge, cube(2), seed=3, config=FLOW)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's generator is left alone
    torch.manual_seed(7)
    again, other = run(ridge, cube(2), seed=3, config=FLOW), run(ridge, cube(2), seed=4, config=FLOW)
    assert again.mean == first.mean and again.sdev == first.sdev and again.verdict == first.verdict
    assert other.mean != first.mean


# --- the budget


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("budget", (256, 257, 511, 1000, 4999, 1e4))
def test_the_budget_is_hard(method, budget):
    f = Counted(ridge)
    settings = replace(CONFIGS[method], rows=2000)
    result = run(f, cube(2), budget, config=settings)
    assert f.rows == result.n_evals <= budget
    assert result.n_evals > 0.93 * budget
    probe = result.n_evals - sum(it.n for it in result.iterations)
    assert 0 < probe <= 21
    final = sum(it.n for it in result.iterations if it.phase == "final")
    assert result.n_train == result.n_evals - final and result.diagnostics.n == final
    assert final >= 0.29 * budget


@pytest.mark.parametrize("dim", (1, 8))
def test_the_budget_is_hard_in_other_dimensions(dim):
    for budget in (300, 2001):
        f = Counted(lambda x: np.exp(-(x**2).sum(1)))
        assert run(f, cube(dim), budget, config=replace(FLOW, rows=2000)).n_evals == f.rows <= budget


def test_a_tolerance_ends_the_run_early_and_nothing_else_does():
    def smooth(x):
        return np.exp(-2 * x.sum(1))

    whole = run(smooth, cube(3), 50_000, config=GRID)
    rough = run(smooth, cube(3), 50_000, config=GRID, rtol=0.01)
    fine = run(smooth, cube(3), 50_000, config=GRID, rtol=1e-9)
    absolute = run(smooth, cube(3), 50_000, config=GRID, atol=1e-3)
    assert whole.n_evals > 48_000 and fine.n_evals > 48_000
    assert rough.n_evals < 12_000 and rough.sdev < 0.01 * rough.mean
    assert absolute.n_evals < 40_000 and absolute.sdev < 1e-3
    truth = ((1 - math.exp(-2)) / 2) ** 3
    for result in (whole, rough, fine, absolute):
        assert abs(pull(result, truth)) < 5


# --- regions of integration


def check(result, truth: float, accuracy: float) -> None:
    """Within five errors (Student's t: 2e-5), and accurate."""
    assert abs(result.mean - truth) < 5 * result.sdev + 1e-12 * abs(truth), (result.mean, result.sdev, truth)
    assert result.sdev < accuracy * abs(truth) and result.reliable


@pytest.mark.parametrize("method", CONFIGS)
def test_infinite_limits(method):
    inf = math.inf
    gaussian = run(lambda x: np.exp(-0.5 * (x**2).sum(1)), [(-inf, inf)] * 2, config=CONFIGS[method])
    check(gaussian, 2 * math.pi, 0.02)
    half = run(
        lambda x: x[:, 0] * np.exp(-x[:, 0]) * (x[:, 1] < -1), [(0, inf), (-2, 0)], config=CONFIGS[method]
    )
    check(half, 1.0, 0.02)
    cauchy = run(lambda x: 1 / (1 + (x[:, 0] - 2) ** 2), [(-inf, inf)], config=CONFIGS[method])
    check(cauchy, math.pi, 0.02)
    tail = run(lambda x: 1 / x[:, 0] ** 2, [(-inf, -1)], config=CONFIGS[method], scales=3.0)
    check(tail, 1.0, 0.02)


@pytest.mark.parametrize("method", CONFIGS)
def test_periodic_axis(method):
    """A von Mises peak that lies across the end."""

    def f(x):
        return np.exp(4 * np.cos(x[:, 0] - 3.1)) * (1 + x[:, 1])

    result = run(f, [(-math.pi, math.pi), (0, 1)], periodic=(0,), config=CONFIGS[method])
    check(result, 2 * math.pi * i0(4.0) * 1.5, 0.02)
    assert result.diagnostics.efficiency > 0.5


@pytest.mark.parametrize("method", CONFIGS)
def test_periodic_axes_only(method):
    result = run(
        lambda x: np.exp(3 * np.cos(x[:, 0] - x[:, 1])),
        [(0, 2 * math.pi)] * 2,
        periodic=(0, 1),
        config=CONFIGS[method],
    )
    check(result, (2 * math.pi) ** 2 * i0(3.0), 0.05)


@pytest.mark.parametrize("method", CONFIGS)
def test_one_dimension(method):
    check(run(lambda x: np.exp(x[:, 0]), [(0, 1)], config=CONFIGS[method]), math.e - 1, 1e-2)
    peak = run(lambda x: np.exp(-0.5 * ((x[:, 0] - 3) / 0.01) ** 2), [(-5, 5)], config=CONFIGS[method])
    check(peak, 0.01 * math.sqrt(2 * math.pi), 0.02)


@pytest.mark.parametrize("dim", (1, 3, 18))
def test_constant_integrand(dim):
    """Known without an error, and reliable."""
    result = run(lambda x: np.full(len(x), 1 / 3), [(-1, 1)] * dim, 2000)
    assert result.mean == pytest.approx(2**dim / 3, rel=1e-12) and result.sdev < 1e-12 * result.mean
    assert result.reliable and result.method == "grid" and result.diagnostics.khat == 0.0


# --- values


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("offset", (-2000.0, 2000.0))
def test_log_integrand_that_no_double_holds(method, offset):
    result = run(lambda x: np.log(ridge(x)) + offset, cube(2), config=CONFIGS[method], log=True)
    assert abs(result.log_mean - offset - math.log(RIDGE)) < 5 * result.log_sdev and result.log_sdev < 0.05
    assert result.reliable and result.mean == (0.0 if offset < 0 else math.inf)
    assert f"e^({result.log_mean:.0f}"[:6] in str(result)


def test_a_log_integrand_is_the_same_integral():
    linear = run(ridge, cube(2), config=GRID)
    logarithmic = run(lambda x: np.log(ridge(x)), cube(2), config=GRID, log=True)
    assert logarithmic.mean == pytest.approx(linear.mean, rel=1e-9)
    assert logarithmic.sdev == pytest.approx(linear.sdev, rel=1e-6)


def test_a_peak_much_sharper_than_the_budget_can_find():
    """log f spans 1e12: the answer has to be finite in the logarithm, and marked."""
    result = run(lambda x: -0.5 * ((x - 0.3) ** 2).sum(1) / 1e-12, cube(6), 1000, log=True)
    assert not result.reliable and math.isfinite(result.log_mean) and "Do not use" in str(result)


@pytest.mark.parametrize("method", ("grid", "flow"))
def test_vector_valued(method):
    """Hotelling's T² of two correlated components over 25 seeds; and a ratio better than its parts."""

    def f(x):
        g = ridge(x)
        return np.stack([g, g * x[:, 0], 2 * g], 1)

    truth, squares = np.array([RIDGE, RIDGE / 2]), []
    for seed in range(25 if method == "grid" else 8):
        result = run(f, cube(2), 2500, seed, CONFIGS[method])
        away = result.mean[:2] - truth
        squares.append(away @ np.linalg.solve(result.covariance[:2, :2], away))
    t = np.random.default_rng(1).standard_normal((4000, len(squares), 2))
    scale = np.random.default_rng(2).chisquare(30, (4000, len(squares))) / 30
    high = np.quantile(((t**2).sum(2) / scale).mean(1), 0.999)  # 31 degrees of freedom, two components
    assert np.mean(squares) < 1.1 * high
    assert result.mean.shape == result.sdev.shape == (3,) and result.covariance.shape == (3, 3)
    double = result.ratio(2, 0)
    assert double.value == pytest.approx(2.0, rel=1e-12) and double.sdev < 1e-6
    share = result.ratio(1, 0)
    assert abs(share.value - 0.5) < 5 * share.sdev
    assert share.sdev < 0.5 * math.hypot(*(result.sdev[:2] / result.mean[:2])) * share.value


def test_components_where_the_first_vanishes():
    """The first trains the proposal, the second lives elsewhere; the defence reaches it."""

    def f(x):
        return np.stack([x[:, 0] < 0.5, x[:, 0] >= 0.5], 1).astype(float)

    result = run(f, cube(2), 8000, config=GRID)
    assert abs(result.mean[1] - 0.5) < 5 * result.sdev[1]


def test_histogram():
    """Bins of x0 + x1 under the ridge, against the normal distribution of the sum."""
    edges = np.linspace(0.6, 1.4, 5)
    result = run(with_histogram(ridge, lambda x: x.sum(1), edges), cube(2), 8000, config=GRID)
    cdf = stats.norm.cdf(edges, loc=1.0, scale=0.1 * math.sqrt(3.8))
    assert result.mean.shape == (5,)
    assert np.abs((result.mean[1:] - RIDGE * np.diff(cdf)) / result.sdev[1:]).max() < 5
    total = float(np.ones(4) @ result.covariance[1:, 1:] @ np.ones(4))
    assert total < 0.9 * (result.sdev[1:] ** 2).sum() or total < 2 * result.sdev[0] ** 2


@pytest.mark.parametrize("method", CONFIGS)
def test_signed_integrand_that_vanishes(method):
    result = run(lambda x: np.sin(2 * np.pi * x[:, 0]) * (1 + x[:, 1]), cube(2), config=CONFIGS[method])
    assert abs(result.mean) < 5 * result.sdev and 0 < result.sdev < 0.05
    assert any("opposite signs" in text for text in result.warnings)


@pytest.mark.parametrize("method", CONFIGS)
def test_signed_integrand_with_cancellation(method):
    """The difference of two peaks: a tenth of what either has."""

    def f(x):
        one, two = (np.exp(-0.5 * (((x - c) / 0.08) ** 2).sum(1)) for c in (0.35, 0.65))
        return 1.1 * one - two

    result = run(f, cube(2), 8000, config=CONFIGS[method])
    truth = 0.1 * 2 * math.pi * 0.08**2 * (1 - 2.5e-5)
    assert abs(pull(result, truth)) < 5 and result.reliable and result.sdev < 0.5 * truth


def test_signs_that_cancel_exactly():
    result = run(lambda x: np.sign(x[:, 0] - 0.5), cube(1), 2000)
    assert abs(result.mean) <= 5 * result.sdev + 1e-12 and math.isfinite(result.sdev)
    assert not math.isnan(result.chi2) and isinstance(str(result), str)


@pytest.mark.parametrize("method", CONFIGS)
def test_cuts(method):
    """Zero in 99 % of the region, and not flat in the rest."""

    def f(x):
        inside = ((x > 0.62) & (x < 0.72)).all(1)
        return np.where(inside, np.exp(20 * (x[:, 0] - 0.62)), 0.0)

    result = run(f, cube(2), 10_000, config=CONFIGS[method])
    check(result, 0.1 * (math.exp(2) - 1) / 20, 0.03)
    assert result.diagnostics.n_zero > 0


@pytest.mark.parametrize("method", CONFIGS)
def test_zero_everywhere(method):
    result = run(lambda x: np.zeros(len(x)), cube(2), 1000, config=CONFIGS[method])
    assert not result.reliable and result.mean == 0.0 and result.log_mean == -math.inf
    assert "zero" in result.verdict and isinstance(str(result), str)
    assert result.diagnostics.n_zero == sum(it.n for it in result.iterations)


def nan_below(limit: float):
    return lambda x: np.where(x[:, 0] < limit, np.nan, np.where(x[:, 0] > 1 - limit, np.inf, 1 + x[:, 0]))


def test_nan_and_infinity_are_counted():
    seen = []

    def f(x):
        values = nan_below(0.002)(x)
        seen.append((len(x), int(np.isnan(values).sum()), int(np.isinf(values).sum())))
        return values

    result = run(f, cube(2), 5000, config=GRID, calls="numpy")
    counts = np.array(seen[1:]).sum(0)  # the first is the probe
    assert result.diagnostics.n_nan == counts[1] > 0 and result.diagnostics.n_inf == counts[2] > 0
    assert result.reliable and any("count as zero" in text for text in result.warnings)
    bad = run(nan_below(0.03), cube(2), 5000, config=GRID)
    assert not bad.reliable and "NaN or infinite" in bad.verdict


def test_nan_everywhere_and_the_policy_that_raises():
    result = run(lambda x: np.full(len(x), np.nan), cube(2), 1000)
    assert not result.reliable and "NaN" in result.verdict and result.mean == 0.0
    with pytest.raises(ValueError, match="expected finite values"):
        run(nan_below(0.1), cube(2), 1000, nonfinite="raise")


# --- how f is called


def bounds_of_functions() -> list[tuple[float, float]]:
    return [(1.0, 2.0), (0.0, 1.0)]


@pytest.mark.parametrize("method", ("grid", "flow"))
def test_numpy_torch_and_scalar_agree(method):
    results = [
        run(f, bounds_of_functions(), 2000, config=CONFIGS[method])
        for f in (functions.numpy_batch, functions.torch_batch, functions.scalar)
    ]
    for result in results:
        check(result, 1.5 - 1 / 3, 0.02)
        assert result.mean == pytest.approx(results[0].mean, abs=5 * results[0].sdev)


def test_vegas_integrand():
    vegas = pytest.importorskip("vegas")

    @vegas.lbatchintegrand
    def f(x):
        return ridge(np.asarray(x))

    result = run(f, cube(2), config=GRID, calls="auto")
    assert result.mean == run(ridge, cube(2), config=GRID, calls="numpy").mean


def test_threads_give_the_same_answer():
    alone = run(functions.numpy_batch, bounds_of_functions(), 2000, config=FLOW)
    with ThreadPoolExecutor(3) as pool:
        shared = run(functions.numpy_batch, bounds_of_functions(), 2000, config=FLOW, executor=pool)
    assert shared.mean == alone.mean and shared.sdev == alone.sdev
    assert len(shared.sample(50, seed=1)) == 50  # the pool is closed by now


def test_processes_give_the_same_answer():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sbiflow.integrate.integrand", "tests.integrate.functions"])
    alone = run(functions.scalar, bounds_of_functions(), 600, config=GRID)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        shared = run(functions.scalar, bounds_of_functions(), 600, config=GRID, executor=pool)
    assert shared.mean == alone.mean and shared.sdev == alone.sdev


# --- calls one after the other


@pytest.mark.parametrize("method", ("grid", "flow"))
def test_a_second_call_goes_on(method):
    """It explores no more, and what it has learned serves it."""
    integrator = Integrator(cube(2), config=CONFIGS[method])
    first, second = (integrator(ridge, 6000, seed=1, progress=False) for _ in range(2))
    check(first, RIDGE, 0.2)
    check(second, RIDGE, 0.2)
    assert second.mean != first.mean  # the same seed, but other points
    assert second.sdev < 2 * first.sdev  # each from 32 nets of a smooth integrand
    if method == "flow":
        assert "explore" not in {it.phase for it in second.iterations} and second.n_train <= first.n_train
        assert second.iterations[0].ess > 5 * first.iterations[0].ess


def test_no_net_is_drawn_twice(monkeypatch):
    """A second call with the same seed is independent of the first and of what the first has trained on."""
    keys, original = [], __import__("sbiflow.integrate.run", fromlist=["net"]).net

    def recorded(log2_n, dim, seed, *key):
        keys.append((seed, *key))
        return original(log2_n, dim, seed, *key)

    monkeypatch.setattr(run_module, "net", recorded)
    integrator = Integrator(cube(2), config=GRID)
    for _ in range(2):
        integrator(ridge, 1000, seed=1, progress=False)
    assert len(keys) == len(set(keys)) > 60


def test_a_result_keeps_its_proposal():
    """Later calls of the integrator do not change what an earlier result draws."""
    integrator = Integrator(cube(2), config=GRID)
    first = integrator(ridge, 2000, seed=1, progress=False)
    before = first.sample(100, seed=1).x
    integrator(lambda x: np.exp(-50 * x[:, 0]), 2000, seed=2, progress=False)
    assert torch.equal(first.sample(100, seed=1).x, before)


def test_another_integrand_after_an_interruption():
    integrator = Integrator(cube(2), config=GRID)

    def broken(x):
        raise ArithmeticError("no convergence")

    with pytest.raises(ArithmeticError):
        integrator(broken, 2000, seed=1, calls="numpy", progress=False)
    check(integrator(ridge, 3000, seed=1, progress=False), RIDGE, 0.2)


# --- draws


@pytest.mark.parametrize("method", ("grid", "flow"))
def test_sample_is_weighted_right(method):
    result = run(ridge, cube(2), config=CONFIGS[method])
    points = result.sample(20_000, seed=5)
    mean, sdev = points.integral
    assert abs(mean - RIDGE) < 4 * sdev and 0 < sdev < 0.05 * mean
    np.testing.assert_allclose(points.values.numpy(), ridge(points.x.numpy()), rtol=1e-9, atol=1e-300)
    density = (points.values / points.weights.where(points.weights != 0, torch.nan)).log()
    kept = torch.isfinite(density)
    torch.testing.assert_close(density[kept], points.log_q[kept], rtol=0.0, atol=1e-9)
    assert torch.equal(result.sample(50, seed=5).x, result.sample(50, seed=5).x)
    assert not torch.equal(result.sample(50, seed=5).x, result.sample(50, seed=6).x)


def test_sample_in_physical_units():
    """log_q is the density in x: its exponential's inverse integrates to the volume."""
    result = run(lambda x: np.exp(-x[:, 0]), [(0, 5), (-10, 10)], config=GRID)
    points = result.sample(20_000, seed=1)
    w = (-points.log_q).exp()
    assert abs(float(w.mean()) - 100) < 4 * float(w.std()) / math.sqrt(len(w))
    assert bool(((points.x[:, 1] > -10) & (points.x[:, 1] < 10)).all())


@pytest.mark.parametrize("method", ("grid", "flow"))
def test_unweighted_points_follow_the_modulus(method):
    """Kolmogorov-Smirnov of both marginals and of their sum, false-alarm rate 1e-4 each."""
    events = run(ridge, cube(2), config=CONFIGS[method]).unweight(3000, seed=2)
    assert len(events) == 3000 and events.overweight_share < 0.05 and 0.05 < events.efficiency < 1
    x = events.x.numpy()
    for values, sigma in ((x[:, 0] - 0.5, 0.1), (x[:, 1] - 0.5, 0.1), (x.sum(1) - 1, 0.1 * math.sqrt(3.8))):
        assert stats.kstest(values, "norm", (0, sigma)).pvalue > 1e-4
    assert bool((events.signs == 1).all())


def test_signs_of_unweighted_points():
    events = run(lambda x: np.sin(2 * np.pi * x[:, 0]), cube(1), config=GRID).unweight(2000, seed=2)
    assert torch.equal(events.signs, torch.sin(2 * torch.pi * events.x[:, 0]).sign())
    assert stats.binomtest(int((events.signs > 0).sum()), 2000).pvalue > 1e-4


def test_draws_of_an_integrand_that_underflows():
    result = run(lambda x: np.log(ridge(x)) - 3000, cube(2), config=GRID, log=True)
    points = result.sample(5000, seed=1)
    log_mean, error = points.log_integral
    assert abs(log_mean + 3000 - math.log(RIDGE)) < 4 * error < 0.2
    assert bool(torch.isfinite(points.values).all()) and float(points.values.max()) > 0
    assert len(result.unweight(100, seed=1)) == 100


# --- what is refused


@pytest.mark.parametrize(
    "options, message",
    (
        ({"budget": 255}, "budget: expected a whole number >= 256"),
        ({"budget": 1e5 + 0.5}, "budget"),
        ({"seed": -1}, "seed: expected a whole number"),
        ({"seed": True}, "seed"),
        ({"rtol": -1e-3}, "rtol"),
        ({"atol": math.nan}, "atol"),
        ({"calls": "fortran"}, "calls: expected one of"),
        ({"nonfinite": "ignore"}, "nonfinite: expected one of"),
        ({"start": np.zeros((50, 3))}, r"start: expected shape \(m, 2\), got \(50, 3\)"),
        ({"start": np.full((50, 2), np.nan)}, "start: expected finite"),
        ({"start": np.full((50, 2), 1.5)}, "expected values in"),
        ({"start": np.full((5, 2), 0.5)}, "start: expected at least 20 points, got 5"),
    ),
)
def test_bad_arguments_before_any_evaluation(options, message):
    f = Counted(ridge)
    with pytest.raises(ValueError, match=message):
        Integrator(cube(2))(f, **{"budget": 1000, "seed": 1, "progress": False, **options})
    assert f.rows == 0


def test_bad_integrands():
    with pytest.raises(ValueError, match="expected a function"):
        run(3.0, cube(2))
    with pytest.raises(ValueError, match="integrand"):
        run(lambda x: "text", cube(2))
    with pytest.raises(ValueError, match="stochastic"):
        run(lambda x: np.random.default_rng().uniform(size=len(x)), cube(2))


def test_bad_regions_and_settings():
    for bounds in ([(1, 0)], [(0, 1, 2)], [], [(0, math.nan)]):
        with pytest.raises(ValueError, match="bounds"):
            Integrator(bounds)
    with pytest.raises(ValueError, match="periodic"):
        Integrator(cube(2), periodic=(2,))
    with pytest.raises(ValueError, match="periodic"):
        Integrator(Domain.from_bounds(cube(2)), periodic=(0,))
    with pytest.raises(ValueError, match="method: expected one of"):
        IntegratorConfig(method="vegas")
    for changes in (
        {"defence": 0.0},
        {"train_share": 1.0},
        {"grid_bins": 0},
        {"replicas": 4},
        {"grid_share": 0.5},
    ):
        with pytest.raises(ValueError, match="integrator: expected"):
            IntegratorConfig(**changes)
    with pytest.raises(ValueError, match="sample: expected an integrator that has been called"):
        Integrator(cube(2)).sample(10, seed=1)
