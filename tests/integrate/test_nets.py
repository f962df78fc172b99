"""Scrambled nets: even, unbiased, independent of one another, never on the faces of the cube."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from sbiflow.integrate.nets import floor_log2, net

SIGMAS = 4.0  # two-sided normal: false-alarm rate 6e-5 per comparison


def means(f, log2_n: int, dim: int, nets: int, seed: int = 1) -> np.ndarray:
    """The estimate of every net."""
    return np.array([float(f(net(log2_n, dim, seed, key)).mean()) for key in range(nets)])


def smooth(u: torch.Tensor) -> torch.Tensor:
    """Integral one."""
    return (1 + 0.8 * (u - 0.5)).prod(1)


def step(u: torch.Tensor) -> torch.Tensor:
    """Integral 1/2 in three dimensions."""
    return (u[:, 0] + u[:, 1] + u[:, 2] < 1.5).double()


@pytest.mark.parametrize("log2_n", (0, 1, 5, 10))
@pytest.mark.parametrize("dim", (1, 2, 9))
def test_shape_and_range(log2_n, dim):
    points = net(log2_n, dim, 3, 7)
    assert points.shape == (2**log2_n, dim) and points.dtype == torch.float64
    assert float(points.min()) >= 1e-12 and float(points.max()) <= 1 - 1e-12


def test_never_on_a_face():
    """Scrambled Sobol points are multiples of 2^-30, zero among them; the normal quantile is infinite there."""
    smallest = min(float(net(12, 4, 0, key).min()) for key in range(40))
    assert 0 < smallest < 1e-4 and bool(torch.isfinite(torch.special.ndtri(net(12, 4, 0, 1))).all())


@pytest.mark.parametrize("dim", (1, 2, 17))
def test_every_axis_is_stratified(dim):
    """One point in each of the 2^k intervals of length 2^-k."""
    cells = (net(8, dim, 5, 2) * 2**8).long().sort(0).values
    assert bool((cells == torch.arange(2**8)[:, None]).all())


def test_elementary_intervals():
    """The first two axes form a (0, 8, 2)-net: one point in every box of volume 2^-8."""
    points = net(8, 2, 5, 2)
    for bits in range(9):
        box = (points[:, 0] * 2**bits).long() * 2 ** (8 - bits) + (points[:, 1] * 2 ** (8 - bits)).long()
        assert len(box.unique()) == 2**8


@pytest.mark.parametrize("f, truth", ((smooth, 1.0), (step, 0.5)))
@pytest.mark.parametrize("log2_n", (0, 3))
def test_unbiased(f, truth, log2_n):
    found = means(f, log2_n, 3, 400)
    assert abs(found.mean() - truth) < SIGMAS * found.std(ddof=1) / math.sqrt(len(found))


def test_a_point_is_uniform():
    points = np.array([net(0, 2, 1, key)[0].tolist() for key in range(800)])
    for axis in range(2):
        assert kstest(points[:, axis], "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(points.T)[0, 1]) < SIGMAS / math.sqrt(800)


def test_variance_falls_faster_than_one_over_n():
    """As 1/n³ for a smooth function, the first moments of independent points giving 1/n."""
    few, many = (means(smooth, log2_n, 3, 100).var() for log2_n in (4, 9))
    assert few / many > 2**5 * 20


def test_no_worse_than_independent_points_for_a_rough_function():
    """Within Owen's bound, e times the variance of independent points."""

    def rough(u):
        return torch.sin(1e7 * u).prod(1)

    independent = float(rough(torch.rand(100_000, 2, dtype=torch.float64)).var())
    assert means(rough, 8, 2, 150).var() < math.e * independent / 2**8


def test_another_key_is_another_scrambling():
    """The correlation of the estimates of neighbouring keys, and of equal keys of neighbouring seeds."""
    found = means(step, 4, 3, 400)
    other = means(step, 4, 3, 400, seed=2)
    for one, two in ((found[:-1], found[1:]), (found, other)):
        assert abs(np.corrcoef(one, two)[0, 1]) < SIGMAS / math.sqrt(400)
    assert not np.array_equal(net(3, 2, 1, 5), net(3, 2, 1, 6))


def test_the_same_key_is_the_same_net():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = net(6, 3, 4, 9)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert torch.equal(net(6, 3, 4, 9), first)


def test_floor_log2():
    for n in range(1, 3000):
        k = floor_log2(n)
        assert 2**k <= n < 2 ** (k + 1)
    assert floor_log2(7.9) == 2 and floor_log2(2.0**40) == 40
