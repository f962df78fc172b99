"""The ten tasks against their definitions: priors, likelihoods and noise, each from scipy or from first principles."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sbiflow.contracts import Simulator
from simulators.benchmark import TASKS, Task, task
from simulators.benchmark.glm import BernoulliGLM, BernoulliGLMRaw, design
from simulators.benchmark.slcp import SLCPDistractors

NORMAL_01, UNIFORM_1, UNIFORM_3 = stats.norm(0, math.sqrt(0.1)), stats.uniform(-1, 2), stats.uniform(-3, 6)
RATE, COUPLING = stats.lognorm(0.5, scale=math.exp(-0.125)), stats.lognorm(0.5, scale=math.exp(-3))
WHITE = [stats.norm(0, math.sqrt(2.0)), *[stats.norm()] * 9]
PRIORS = {
    "gaussian_linear": [NORMAL_01] * 10,
    "gaussian_linear_uniform": [UNIFORM_1] * 10,
    "gaussian_mixture": [stats.uniform(-10, 20)] * 2,
    "two_moons": [UNIFORM_1] * 2,
    "slcp": [UNIFORM_3] * 5,
    "slcp_distractors": [UNIFORM_3] * 5,
    "bernoulli_glm": WHITE,
    "bernoulli_glm_raw": WHITE,
    "sir": [stats.lognorm(0.5, scale=0.4), stats.lognorm(0.2, scale=0.125)],
    "lotka_volterra": [RATE, COUPLING, RATE, COUPLING],
}
WIDTHS = {"gaussian_linear": 10, "gaussian_linear_uniform": 10, "gaussian_mixture": 2, "two_moons": 2, "slcp": 8,
          "slcp_distractors": 100, "bernoulli_glm": 10, "bernoulli_glm_raw": 100, "sir": 10,
          "lotka_volterra": 20}  # fmt: skip


def pairs(name: str, n: int, seed: int = 1) -> tuple[Task, Tensor, Tensor]:
    subject, generator = task(name), torch.Generator().manual_seed(seed)
    theta = subject.prior.sample(n, generator)
    return subject, theta, subject.observe(subject.signal(theta), generator)


def test_the_tasks_of_the_paper_and_no_other():
    assert tuple(PRIORS) == TASKS
    with pytest.raises(ValueError, match=r"expected one of gaussian_linear, .* got 'three_moons'"):
        task("three_moons")


@pytest.mark.parametrize("name", TASKS)
def test_contract(name):
    subject, theta, x = pairs(name, 7)
    assert isinstance(subject, Simulator)
    assert subject.name == name
    assert subject.version
    assert subject.x_shape == (WIDTHS[name],) == (len(subject.x_names),)
    assert x.shape == (7, *subject.x_shape)
    assert len(set(subject.x_names)) == len(subject.x_names)
    assert set(subject.prior.units) == {""}
    one_by_one = torch.cat([subject.log_likelihood(theta[i : i + 1], x[i]) for i in range(7)])
    torch.testing.assert_close(subject.log_likelihood(theta, x), one_by_one)
    assert one_by_one.dtype == torch.float64
    again = pickle.loads(pickle.dumps(subject))
    torch.testing.assert_close(again.log_likelihood(theta, x), one_by_one)
    assert again.version == subject.version
    single = subject.signal(theta.float())
    assert single.dtype == subject.observe(single).dtype == torch.float32
    for bad in (theta[0], theta[:, :-1]):
        with pytest.raises(ValueError, match="theta: expected shape"):
            subject.signal(bad)
        with pytest.raises(ValueError, match="theta: expected shape"):
            subject.log_likelihood(bad, x[0])
    with pytest.raises(ValueError, match="x: expected shape"):
        subject.log_likelihood(theta, x[:3])
    with pytest.raises(ValueError, match="x: expected finite values"):
        subject.log_likelihood(theta, torch.full_like(x[0], math.nan))


@pytest.mark.parametrize("name", TASKS)
def test_prior(name):
    subject, theta, _ = pairs(name, 50)
    columns = zip(PRIORS[name], theta.numpy().T, strict=True)
    expected = sum(marginal.logpdf(column) for marginal, column in columns)
    np.testing.assert_allclose(subject.prior.log_prob(theta).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", [BernoulliGLM, BernoulliGLMRaw])
def test_published_prior_of_the_filter_is_smooth(kind):
    rough = np.zeros((9, 9))
    for i in range(1, 10):
        for j in range(1, 10):
            rough[i - 1, j - 1] = {0: 1 + math.sqrt((i - 1) / 9), 1: -2, 2: 1}.get(i - j, 0)
    expected = np.zeros((10, 10))
    expected[0, 0], expected[1:, 1:] = 2.0, np.linalg.inv(rough.T @ rough)
    subject = kind()
    linear = subject.published(torch.eye(10, dtype=torch.float64)).numpy()  # row i: the image of axis i
    covariance = linear.T @ np.diag([2.0, *[1.0] * 9]) @ linear
    np.testing.assert_allclose(covariance, expected, rtol=1e-10, atol=1e-12)
    theta = subject.prior.sample(5)
    torch.testing.assert_close(subject.from_published(subject.published(theta)), theta)


def test_stimulus_is_the_published_one():
    inputs = design().numpy()
    assert inputs.shape == (100, 10)
    noise = np.array(
        [0.4967141, -0.1382643, 0.6476885, 1.5230298, -0.23415338]
    )  # its first values, to float32
    np.testing.assert_allclose(inputs[:5, 1], noise, rtol=1e-6)
    np.testing.assert_array_equal(inputs[:, 0], 1)
    for lag in range(9):
        np.testing.assert_array_equal(inputs[lag:, 1 + lag], inputs[: 100 - lag, 1])
        np.testing.assert_array_equal(inputs[:lag, 1 + lag], 0)


def gaussian(theta: np.ndarray, x: np.ndarray, _: Task) -> float:
    return stats.multivariate_normal(theta, 0.1 * np.eye(10)).logpdf(x)


def mixture(theta: np.ndarray, x: np.ndarray, _: Task) -> float:
    parts = [stats.multivariate_normal(theta, variance * np.eye(2)).pdf(x) for variance in (1.0, 0.01)]
    return math.log(0.5 * sum(parts))


def slcp(theta: np.ndarray, x: np.ndarray, subject: Task) -> float:
    if isinstance(subject, SLCPDistractors):
        unmixed = np.empty(100)
        unmixed[subject.permutation.numpy()] = x
        x = unmixed[:8]
    first, second, correlation = theta[2] ** 2, theta[3] ** 2, math.tanh(theta[4])
    covariance = np.array(
        [[first**2, correlation * first * second], [correlation * first * second, second**2]]
    )
    density = stats.multivariate_normal(theta[:2], covariance, allow_singular=True)
    return density.logpdf(x.reshape(4, 2)).sum()


def spikes(theta: np.ndarray, x: np.ndarray, subject: Task) -> float:
    filters = subject.published(torch.from_numpy(theta)).numpy()
    rates = 1 / (1 + np.exp(-design().numpy() @ filters))
    return stats.bernoulli(rates).logpmf(x).sum()


def sir(theta: np.ndarray, x: np.ndarray, subject: Task) -> float:
    infected = subject.signal(torch.from_numpy(theta)[None])[0].numpy()
    return stats.binom(1000, infected).logpmf(x).sum()


def lotka_volterra(theta: np.ndarray, x: np.ndarray, subject: Task) -> float:
    populations = subject.signal(torch.from_numpy(theta)[None])[0].exp().numpy()
    return stats.lognorm(0.1, scale=populations).logpdf(x).sum()


ORACLES = {"gaussian_linear": gaussian, "gaussian_linear_uniform": gaussian, "gaussian_mixture": mixture,
           "slcp": slcp, "slcp_distractors": slcp, "bernoulli_glm_raw": spikes, "sir": sir,
           "lotka_volterra": lotka_volterra}  # fmt: skip


@pytest.mark.parametrize("name", ORACLES)
def test_likelihood(name):
    subject, theta, x = pairs(name, 10)
    theta, x = (
        (theta[theta[:, -1].abs() < 2.5], x[theta[:, -1].abs() < 2.5]) if "slcp" in name else (theta, x)
    )
    expected = [ORACLES[name](t, o, subject) for t, o in zip(theta.numpy(), x.numpy(), strict=True)]
    np.testing.assert_allclose(subject.log_likelihood(theta, x).numpy(), expected, rtol=1e-8, atol=1e-8)


def test_likelihood_of_the_sufficient_statistics_is_that_of_the_spikes():
    raw, theta, x = pairs("bernoulli_glm_raw", 10)
    statistics = x @ design()
    found = task("bernoulli_glm").log_likelihood(theta, statistics)
    torch.testing.assert_close(found, raw.log_likelihood(theta, x))


def test_two_moons_density_integrates_to_one():
    subject = task("two_moons")
    step = 5e-4
    first, second = torch.meshgrid(
        torch.arange(-0.02, 0.18, step, dtype=torch.float64) + step / 2,
        torch.arange(-0.18, 0.18, step, dtype=torch.float64) + step / 2,
        indexing="ij",
    )
    theta = torch.tensor([[0.3, -0.5]], dtype=torch.float64)
    x = torch.stack([first, second], -1).reshape(-1, 2) + subject.signal(theta)
    density = subject.log_likelihood(theta.expand(len(x), 2), x).exp()
    assert float(density.sum()) * step**2 == pytest.approx(
        1.0, abs=2e-3
    )  # the crescent's straight edge is a jump
    without_jacobian = density * torch.hypot(first, second).reshape(-1)
    assert float(without_jacobian.sum()) * step**2 == pytest.approx(0.1, abs=1e-3)


def test_two_moons_density_is_that_of_its_draws():
    # chi-squared over 12 x 8 bins of (r, a), which the density fixes: alarm 1e-4 by the seed
    subject, n = task("two_moons"), 50_000
    theta = torch.tensor([[-0.2, 0.6]], dtype=torch.float64)
    centre = subject.signal(theta)
    assert centre[0].tolist() == pytest.approx([0.25 - 0.4 / math.sqrt(2), 0.8 / math.sqrt(2)])
    away = subject.observe(centre.expand(n, 2), torch.Generator().manual_seed(3)) - centre
    cells = np.histogram2d(
        torch.hypot(away[:, 0], away[:, 1]).numpy(),
        torch.atan2(away[:, 1], away[:, 0]).numpy(),
        [np.linspace(0.08, 0.12, 13), np.linspace(-math.pi / 2, math.pi / 2, 9)],
    )
    middle_r, middle_a = (0.5 * (edges[1:] + edges[:-1]) for edges in cells[1:])
    r, a = (torch.from_numpy(grid.ravel()) for grid in np.meshgrid(middle_r, middle_a, indexing="ij"))
    x = centre + torch.stack([r * a.cos(), r * a.sin()], -1)
    area = r * (0.04 / 12) * (math.pi / 8)
    expected = subject.log_likelihood(theta.expand(len(x), 2), x).exp() * area
    expected = (expected / expected.sum()).numpy() * cells[0].sum()  # midpoints are good to some percent
    statistic = ((cells[0].ravel() - expected) ** 2 / expected).sum()
    assert statistic < stats.chi2(95).isf(1e-4) + 0.002 * n


@pytest.mark.parametrize("name", TASKS)
def test_noise_is_that_of_the_likelihood(name):
    """The score has mean zero under its own noise: |z| < 4.5 for 65 parameters, an alarm in 2,000 sets of seeds."""
    subject, generator, n = task(name), torch.Generator().manual_seed(5), 400
    centre, elsewhere = (
        subject.prior.from_uniform(torch.full((1, subject.prior.dim), share, dtype=torch.float64))
        for share in (0.62, 0.8)
    )
    x = subject.observe(subject.signal(centre).expand(n, -1), generator)
    shifted = subject.observe(subject.signal(elsewhere).expand(n, -1), generator)
    steps = 1e-4 * torch.diag(centre[0].abs())

    def worst(observed: Tensor) -> float:
        scores = [
            subject.log_likelihood((centre + step).expand(n, -1), observed)
            - subject.log_likelihood((centre - step).expand(n, -1), observed)
            for step in steps
        ]
        return max(abs(float(score.mean() / score.std())) * math.sqrt(n) for score in scores)

    assert worst(x) < 4.5
    assert worst(shifted) > 4.5


@pytest.mark.parametrize(("name", "bad"), [("sir", 0.5), ("sir", 1001.0), ("bernoulli_glm_raw", 0.5),
                                           ("lotka_volterra", 0.0)])  # fmt: skip
def test_impossible_observations_are_refused(name, bad):
    subject, theta, x = pairs(name, 2)
    x[1, 3] = bad
    with pytest.raises(ValueError, match="x: expected"):
        subject.log_likelihood(theta, x)
