"""One channel of the proposal: cube, grid, probit, whitening, flow and base, forth and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from sbiflow.integrate import chart as chart_module
from sbiflow.integrate.chart import Base, Chart
from sbiflow.integrate.grid import Grid
from sbiflow.integrate.nets import net
from tests.integrate.small import power_channel, random_proposal

FLOAT = torch.float64
# name: dimension, periodic axes, channels
KINDS = {
    "plain": (2, (), ()),
    "one axis": (1, (), ()),
    "five axes": (5, (), ()),
    "one phase": (1, (0,), ()),
    "phases only": (2, (0, 1), ()),
    "phase between": (3, (1,), ()),
    "mapped": (2, (), (power_channel(2, 0.7),)),
}


def chart_of(kind: str, learned: bool, seed: int = 1) -> Chart:
    dim, periodic, channels = KINDS[kind]
    return random_proposal(dim, periodic, channels, learned, seed=seed).parts[0]


def dimension(kind: str) -> int:
    return KINDS[kind][0]


def uniform(n: int, dim: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(n, dim, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))


# --- density and draws


@pytest.mark.parametrize("learned", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_the_density_of_a_draw_is_the_density_there(kind, learned):
    chart = chart_of(kind, learned)
    points = uniform(5000, dimension(kind) + 1)
    y, log_q = chart.draw(points[:, :-1], points[:, -1])
    assert y.dtype == log_q.dtype == FLOAT and y.shape == (5000, dimension(kind))
    assert float(y.min()) >= 0.0 and float(y.max()) <= 1.0
    error = (chart.log_prob(y) - log_q)[torch.isfinite(log_q)]
    assert error.dtype == FLOAT
    if not learned:
        assert len(error) == 5000 and float(error.abs().max()) < 1e-9
        return
    assert len(error) > 4990  # the others lie beyond the cut at the faces, and count as zero: see below
    # float32 inside: the noise of a single point is that of the splines' inverse, and it averages out
    assert float(error.abs().quantile(0.99)) < 1e-3 and float(error.abs().max()) < 0.05
    assert abs(float(error.exp().mean()) - 1) < 2e-5


@pytest.mark.parametrize("learned", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_the_density_integrates_to_one(kind, learned):
    """By a net over the cube, of which the density knows nothing; 16 of them give the error."""
    dim, chart = dimension(kind), chart_of(kind, learned)
    means = torch.stack([chart.log_prob(net(9, dim, 3, key)).exp().mean() for key in range(16)])
    error = float(means.std()) / 4
    assert error < 0.08 and abs(float(means.mean()) - 1) < 5 * error + 1e-6  # 15 degrees of freedom: 1.6e-4


@pytest.mark.parametrize("learned", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_density(kind, learned):
    """1/q integrates over a part of the cube to its volume (4 errors: false alarms 6e-5 each)."""
    dim, chart = dimension(kind), chart_of(kind, learned)
    points = uniform(5000, dim + 1, 8)
    y, log_q = chart.draw(points[:, :-1], points[:, -1])
    inner = ((y > 0.2) & (y < 0.9)).all(1)
    for part, volume in (
        (inner, 0.7**dim),
        (inner & (y[:, 0] < 0.5), 0.3 * 0.7 ** (dim - 1)),
        (inner & (y.sum(1) < 0.55 * dim), 0.7**dim / 2),
    ):
        w = torch.where(part, (-log_q).exp(), 0.0)
        assert abs(float(w.mean()) - volume) < 4 * float(w.std()) / math.sqrt(len(w))


@pytest.mark.parametrize("kind", KINDS)
def test_faces_and_corners_of_the_cube(kind):
    dim = dimension(kind)
    corners = torch.tensor(np.array(np.meshgrid(*[[1e-300, 1e-12, 0.5, 1 - 1e-12, 1.0]] * dim)), dtype=FLOAT)
    y = corners.reshape(dim, -1).T
    for learned in (False, True):
        assert not bool(chart_of(kind, learned).log_prob(y).isnan().any())
    points = torch.full((3, dim + 1), 0.5, dtype=FLOAT)
    points[0], points[2] = 1e-12, 1 - 1e-12
    y, log_q = chart_of(kind, True).draw(points[:, :-1], points[:, -1])
    assert bool(torch.isfinite(y).all()) and bool((log_q > -math.inf).all()) and math.isfinite(log_q[1])


def test_draws_beyond_the_cut_have_no_weight():
    """They lie within 1e-15 of a face: density inf, so that f/q is zero there; the rest has to integrate alone."""
    chart = random_proposal(2, strength=0.0).parts[0]
    chart.factor.copy_(3 * torch.eye(2, dtype=FLOAT))
    points = uniform(20_000, 3)
    y, log_q = chart.draw(points[:, :-1], points[:, -1])
    beyond = log_q == math.inf
    assert 100 < int(beyond.sum()) < 10_000 and bool(torch.isfinite(log_q[~beyond]).all())
    assert bool(((y[beyond] < 1e-14) | (y[beyond] > 1 - 1e-14)).any(1).all())
    w = (-log_q).exp()
    assert abs(float(w.mean()) - 1) < 4 * float(w.std()) / math.sqrt(len(w))  # false alarms 6e-5


@pytest.mark.parametrize("learned", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_no_points(kind, learned):
    """A channel may draw none of a small batch."""
    chart, none = chart_of(kind, learned), torch.empty(0, dimension(kind), dtype=FLOAT)
    y, log_q = chart.draw(none, none[:, 0])
    assert y.shape == none.shape and log_q.shape == (0,)
    assert chart.log_prob(none).shape == (0,)


def test_batches_do_not_matter(monkeypatch):
    chart = chart_of("phase between", True)
    points = uniform(1000, 4)
    whole = [*chart.draw(points[:, :-1], points[:, -1]), chart.log_prob(points[:, :-1])]
    monkeypatch.setattr(chart_module, "_ROWS", 300)
    parts = [*chart.draw(points[:, :-1], points[:, -1]), chart.log_prob(points[:, :-1])]
    for one, other in zip(whole, parts, strict=True):  # float32 products round differently in other batches
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_ends_of_a_periodic_axis_meet():
    chart = chart_of("phase between", True)
    chart.first.set_edges(Grid(3, 50).edges)  # the slope of quantiles jumps at the end
    y = uniform(200, 3)
    sides = [y.index_fill(1, torch.tensor([1]), end) for end in (1e-9, 1 - 1e-9)]
    torch.testing.assert_close(chart.log_prob(sides[0]), chart.log_prob(sides[1]), rtol=0.0, atol=1e-3)
    other = y.index_fill(1, torch.tensor([1]), 0.5)
    assert float((chart.log_prob(other) - chart.log_prob(sides[0])).abs().max()) > 0.05


# --- whitening


@pytest.mark.parametrize("dim, periodic", ((1, ()), (4, ()), (3, (1,))))
def test_whitening_by_weights(dim, periodic):
    """The weighted mean and covariance of the flow's input are 0 and 1."""
    chart = random_proposal(dim, periodic).parts[0]
    z = torch.from_numpy(np.random.default_rng(2).normal(size=(50_000, dim)))
    z = z @ (torch.eye(dim, dtype=FLOAT) + torch.linspace(-0.3, 0.6, dim, dtype=FLOAT)) + 0.7
    weight = (0.5 * z[:, 0]).exp()
    chart.fit_whitening(z, weight)
    v = chart.whiten(z).double()
    assert chart.whiten(z).dtype == torch.float32
    real = chart.real
    got = v[:, real].numpy()
    assert np.abs(np.average(got, axis=0, weights=weight)).max() < 1e-3
    covariance = np.atleast_2d(np.cov(got.T, aweights=weight.numpy()))
    assert np.abs(covariance - np.eye(len(real))).max() < 1e-2
    for axis in periodic:
        torch.testing.assert_close(v[:, axis], z[:, axis], rtol=1e-6, atol=1e-6)
    scale = (
        float(torch.linalg.slogdet(torch.cov(z[:, real].T, aweights=weight).reshape(len(real), len(real)))[1])
        / 2
    )
    assert chart.log_scale == pytest.approx(scale, abs=0.05)


@pytest.mark.parametrize("m", (1, 2, 5))
def test_whitening_of_few_or_equal_points(m):
    chart = random_proposal(4).parts[0]
    for z in (
        torch.full((m, 4), 0.3, dtype=FLOAT),
        torch.from_numpy(np.random.default_rng(1).normal(size=(m, 4))),
    ):
        chart.fit_whitening(z, torch.ones(m, dtype=FLOAT))
        assert bool(torch.isfinite(chart.whiten(z)).all()) and math.isfinite(chart.log_scale)


def test_whitening_leaves_a_narrow_ridge():
    """rho = 0.9999: the flow sees round points."""
    rng = np.random.default_rng(3)
    common, own = rng.normal(size=(20_000, 1)), rng.normal(size=(20_000, 6))
    z = torch.from_numpy(math.sqrt(0.9999) * common + 0.01 * own)
    chart = random_proposal(6).parts[0]
    chart.fit_whitening(z, torch.ones(20_000, dtype=FLOAT))
    covariance = torch.cov(chart.whiten(z).double().T)
    torch.testing.assert_close(covariance, torch.eye(6, dtype=FLOAT), rtol=0.0, atol=0.05)


# --- the base


@pytest.mark.parametrize("periodic", ((False, False), (False, True, False), (True,), (False,)))
def test_base_density(periodic):
    """Against scipy: a share of wide normals per real column, uniform phases."""
    base, dim = Base(periodic, 0.1, 2.0), len(periodic)
    u = torch.from_numpy(np.random.default_rng(1).normal(size=(500, dim)) * 2)
    real = [i for i in range(dim) if not periodic[i]]
    narrow = norm.pdf(u[:, real]).prod(1) if real else 1.0
    wide = norm.pdf(u[:, real], scale=2.0).prod(1) if real else 1.0
    want = np.log(0.9 * narrow + 0.1 * wide) - (dim - len(real)) * math.log(2 * math.pi)
    np.testing.assert_allclose(base.log_prob(u).numpy(), np.broadcast_to(want, 500), rtol=1e-12)


def test_base_draws():
    """Kolmogorov-Smirnov, false-alarm rate 1e-4 each."""
    base, points = Base((False, True), 0.2, 3.0), uniform(20_000, 3)
    u = base.place(points[:, :-1], points[:, -1]).numpy()
    assert kstest(u[:, 0], lambda x: 0.8 * norm.cdf(x) + 0.2 * norm.cdf(x, scale=3.0)).pvalue > 1e-4
    assert kstest(u[:, 1], "uniform", (-math.pi, 2 * math.pi)).pvalue > 1e-4


def test_base_without_a_wide_part():
    base = Base((False,) * 3, 0.0, 2.0)
    u = torch.from_numpy(np.random.default_rng(1).normal(size=(100, 3)))
    np.testing.assert_allclose(base.log_prob(u).numpy(), norm.logpdf(u).sum(1), rtol=1e-12)
