"""The adaptive grid: a smooth monotone map per axis, its density, and where its bins go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sbiflow.integrate.grid import Grid

FLOAT = torch.float64


def uniform(n: int, dim: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, dim, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))


def with_widths(widths: np.ndarray) -> Grid:
    """Bins of these relative widths, (D, M)."""
    dim, bins = widths.shape
    edges = np.concatenate([np.zeros((dim, 1)), np.cumsum(widths / widths.sum(1, keepdims=True), 1)], 1)
    grid = Grid(dim, bins)
    grid.set_edges(torch.from_numpy(edges))
    return grid


def made(kind: str) -> Grid:
    rng = np.random.default_rng(3)
    if kind == "identity":
        return Grid(3, 50)
    if kind == "one bin":
        return Grid(2, 1)
    if kind == "one axis":
        return with_widths(rng.dirichlet(np.ones(20), 1))
    if kind == "uneven":  # neighbours differ by up to a factor of 100
        return with_widths(10.0 ** rng.uniform(-1, 1, (3, 50)))
    return with_widths(10.0 ** rng.uniform(-7, 0, (3, 50)))  # "extreme"


KINDS = ("identity", "one bin", "one axis", "uneven", "extreme")


def refined(grid: Grid, log_f, rounds: int, n: int = 4096) -> Grid:
    """As the integrator does it: log of the squared weights."""
    for seed in range(rounds):
        g = uniform(n, grid.dim, seed)
        y, log_slope = grid.to_cube(g)
        grid.refine(g, 2 * (log_f(y) - log_slope))
    return grid


def efficiency(grid: Grid, log_f, n: int = 20_000) -> float:
    """Effective share of the points that the grid draws."""
    y, log_slope = grid.to_cube(uniform(n, grid.dim, 99))
    w = (log_f(y) - log_slope).exp()
    return float(w.sum() ** 2 / (w * w).sum() / n)


# --- the map


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind):
    grid = made(kind)
    y = torch.cat([uniform(5000, grid.dim), grid.edges.T, torch.zeros(1, grid.dim), torch.ones(1, grid.dim)])
    g, log_slope = grid.to_grid(y)
    back, log_back = grid.to_cube(g)
    # one is as fine as 1e-16, and the other as much coarser as the map is steep, or flat
    slopes = autograd_slopes(grid, y)[1]
    assert bool(((back - y).abs() <= 1e-12 + 1e-15 / slopes).all())
    assert bool(((grid.to_grid(back)[0] - g).abs() <= 1e-12 + 1e-15 * slopes).all())
    if kind != "extreme":
        torch.testing.assert_close(log_back, log_slope, rtol=0.0, atol=1e-10)
        torch.testing.assert_close(grid.to_grid(grid.to_cube(y)[0])[0], y, rtol=0.0, atol=1e-12)


def autograd_slopes(grid: Grid, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log |dg/dy| (n,) and the slopes of each axis (n, D), by autograd."""
    y = y.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(grid.to_grid(y)[0].sum(), y)
    return slopes.log().sum(1), slopes


@pytest.mark.parametrize("kind", KINDS)
def test_density_is_the_slope(kind):
    grid = made(kind)
    y = uniform(3000, grid.dim)
    want, slopes = autograd_slopes(grid, y)
    assert bool((slopes > 0).all())
    torch.testing.assert_close(grid.to_grid(y)[1], want, rtol=1e-9, atol=1e-10)
    inner = uniform(3000, grid.dim, 2)
    x, log_slope = grid.to_cube(inner)
    tolerance = 1e-10 if kind != "extreme" else 1e-4  # the returned y is rounded, within bins of 1e-8
    torch.testing.assert_close(log_slope, autograd_slopes(grid, x)[0], rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("kind", ("identity", "one axis", "uneven"))
def test_density_against_finite_differences(kind):
    grid = made(kind)
    y = uniform(500, grid.dim) * 0.998 + 1e-3
    step = 1e-6
    crossed = torch.stack([grid.to_grid(y + side)[0] for side in (-step, step)])
    want = ((crossed[1] - crossed[0]) / (2 * step)).log().sum(1)
    error = (grid.to_grid(y)[1] - want).abs()
    assert float(error.median()) < 1e-6 and float(error.max()) < 0.02  # the curvature jumps at the edges


@pytest.mark.parametrize("kind", KINDS)
def test_every_bin_has_the_same_mass(kind):
    grid = made(kind)
    torch.testing.assert_close(
        grid.to_grid(grid.edges.T.contiguous())[0],
        torch.linspace(0, 1, grid.bins + 1, dtype=FLOAT)[:, None].expand(-1, grid.dim),
        rtol=0.0,
        atol=1e-15,
    )


@pytest.mark.parametrize("kind", ("one axis", "uneven"))
def test_density_integrates_to_one(kind):
    grid = made(kind)
    node, weight = np.polynomial.legendre.leggauss(60)
    first = Grid(1, grid.bins)
    for axis in range(grid.dim):
        first.set_edges(grid.edges[axis : axis + 1])
        start, width = first.edges[0, :-1, None], first.edges[0].diff()[:, None]
        places = (start + width * torch.from_numpy(node + 1) / 2).reshape(-1, 1)
        density = first.to_grid(places)[1].exp().reshape(grid.bins, -1)
        mass = (density * torch.from_numpy(weight) * width / 2).sum(1)
        torch.testing.assert_close(mass, torch.full_like(mass, 1 / grid.bins), rtol=1e-8, atol=0.0)


def test_density_is_continuous():
    grid = made("uneven")
    inner = grid.edges[:, 1:-1].T
    sides = [grid.to_grid(inner * (1 + sign * 1e-13))[1] for sign in (-1, 1)]
    torch.testing.assert_close(sides[0], sides[1], rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("kind", ("identity", "one bin"))
def test_starts_as_the_identity(kind):
    grid, y = made(kind), uniform(100, made(kind).dim)
    g, log_slope = grid.to_grid(y)
    torch.testing.assert_close(g, y, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(log_slope, torch.zeros(100, dtype=FLOAT), rtol=0.0, atol=1e-12)


def test_stays_within_the_cube():
    for kind in KINDS:
        grid = made(kind)
        y = grid.to_cube(uniform(20_000, grid.dim))[0]
        assert float(y.min()) >= 0.0 and float(y.max()) <= 1.0
        assert bool(torch.isfinite(grid.to_grid(y)[1]).all())


# --- refinement


def peak(centre: float, sigma: float):
    return lambda y: -0.5 * (((y - centre) / sigma) ** 2).sum(1)


@pytest.mark.parametrize("dim", (1, 3))
def test_refinement_moves_the_bins_to_the_peak(dim):
    log_f = peak(0.3, 0.02)
    before, grid = efficiency(Grid(dim, 50), log_f), refined(Grid(dim, 50), log_f, 8)
    inside = (grid.edges > 0.3 - 0.08) & (grid.edges < 0.3 + 0.08)
    assert bool((inside.sum(1) > 40).all())
    assert before < 0.1 and efficiency(grid, log_f) > 0.8


@pytest.mark.parametrize("centre", (0.0, 0.5, 1.0))
def test_extreme_peak(centre):
    """sigma = 1e-6, approached through |f|^beta as the integrator does it."""
    grid, log_f = Grid(1, 50), peak(centre, 1e-6)
    for beta in 10.0 ** np.linspace(-10, 0, 21):
        refined(grid, lambda y, beta=beta: beta * log_f(y), 1, 2048)
    refined(grid, log_f, 4, 2048)
    assert bool(torch.isfinite(grid.edges).all()) and bool((grid.edges.diff() > 0).all())
    assert efficiency(grid, log_f) > 0.5


def test_two_peaks_on_one_axis():
    def log_f(y):
        return torch.logaddexp(peak(0.2, 0.01)(y), peak(0.9, 0.03)(y))

    assert efficiency(refined(Grid(1, 50), log_f, 8), log_f) > 0.8


def test_axes_do_not_disturb_one_another():
    grid = refined(Grid(2, 50), lambda y: peak(0.7, 0.05)(y[:, :1]), 6, 20_000)
    torch.testing.assert_close(grid.edges[1], torch.linspace(0, 1, 51, dtype=FLOAT), rtol=0.0, atol=0.05)
    assert float((grid.edges[0] - torch.linspace(0, 1, 51, dtype=FLOAT)).abs().max()) > 0.3


@pytest.mark.parametrize("n", (20, 256, 5000))
def test_constant_contributions_leave_the_grid_alone(n):
    """Also where bins got no point: no point is no contribution of zero."""
    for kind in ("identity", "uneven"):
        grid = made(kind)
        before = grid.edges.clone()
        grid.refine(uniform(n, grid.dim), torch.full((n,), -1234.5, dtype=FLOAT))
        torch.testing.assert_close(grid.edges, before, rtol=0.0, atol=1e-13)


def test_refinement_does_not_depend_on_the_scale_of_f():
    log_f, grids = peak(0.4, 0.1), [Grid(2, 30) for _ in range(3)]
    for grid, offset in zip(grids, (0.0, -2000.0, 2000.0), strict=True):
        refined(grid, lambda y, offset=offset: log_f(y) + offset, 3)
        torch.testing.assert_close(grid.edges, grids[0].edges, rtol=0.0, atol=1e-12)


def test_nothing_moves_without_contributions():
    grid = made("uneven")
    before = grid.edges.clone()
    grid.refine(uniform(64, 3), torch.full((64,), -math.inf, dtype=FLOAT))
    grid.refine(uniform(0, 3), torch.zeros(0, dtype=FLOAT))  # a channel that drew no point
    assert torch.equal(grid.edges, before)


def test_zeros_take_their_bins_away():
    """f is zero above 0.5."""
    grid = refined(Grid(1, 50), lambda y: torch.where(y[:, 0] < 0.5, 0.0, -math.inf), 6)
    assert float((grid.edges < 0.5).double().mean()) > 0.95


# --- a grid from points


def test_fit_puts_the_edges_at_the_quantiles():
    """Mass 0.9 by the points, uniform between 50 of their quantiles, plus 0.1 uniform: 1/M in every bin."""
    y = np.random.default_rng(1).beta([2.0, 0.5], [5.0, 0.5], (100_000, 2))
    grid, levels = Grid(2, 50), np.arange(51) / 50
    grid.fit(torch.from_numpy(y))
    for axis in range(2):
        edges, places = grid.edges[axis].numpy(), np.quantile(y[:, axis], levels)
        places[[0, -1]] = 0.0, 1.0
        share = np.interp(edges, places, levels)
        assert np.abs(0.9 * share + 0.1 * edges - levels).max() < 1e-9


@pytest.mark.parametrize("bins", (1, 2, 50))
@pytest.mark.parametrize("m", (1, 2, 30))
def test_fit_to_few_points(m, bins):
    grid = Grid(2, bins)
    grid.fit(uniform(m, 2))
    assert bool((grid.edges.diff() > 0).all()) and float(grid.edges[0, -1]) == 1.0
    y = grid.to_cube(uniform(1000, 2, 5))[0]
    torch.testing.assert_close(grid.to_cube(grid.to_grid(y)[0])[0], y, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("value", (0.0, 0.37, 1.0))
def test_fit_to_a_constant_column_and_duplicates(value):
    """A chain repeats its points, and a parameter may not move at all."""
    y = torch.stack([torch.full((1000,), value, dtype=FLOAT), uniform(10, 1).repeat(100, 1)[:, 0]], 1)
    grid = Grid(2, 50)
    grid.fit(y)
    assert bool((grid.edges.diff() > 0).all()) and bool(torch.isfinite(grid.edges).all())
    density = Grid(1, 50)
    density.set_edges(grid.edges[:1])
    near = torch.tensor([[min(max(value + side * 1e-4, 0.0), 1.0)] for side in (-1, 1)], dtype=FLOAT)
    assert float(density.to_grid(near)[1].max()) > math.log(10.0)  # one of the sides at least
    assert bool(torch.isfinite(grid.to_grid(uniform(5000, 2))[1]).all())


def test_fit_of_a_fit_is_efficient():
    """Draws of a narrow Gaussian as a warm start: the grid then draws from it."""
    generator = torch.Generator().manual_seed(3)
    y = 0.6 + 0.01 * torch.randn(5000, 2, dtype=FLOAT, generator=generator)
    grid = Grid(2, 50)
    grid.fit(y)
    assert efficiency(grid, peak(0.6, 0.01)) > 0.6


# --- on disk


def test_reload_gives_the_same_density():
    grid, other = made("extreme"), Grid(3, 50)
    other.load_state_dict(grid.state_dict())
    y = uniform(1000, 3)
    assert torch.equal(other.edges, grid.edges)
    for one, two in zip(grid.to_grid(y) + grid.to_cube(y), other.to_grid(y) + other.to_cube(y), strict=True):
        assert torch.equal(one, two)
