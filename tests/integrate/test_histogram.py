"""Histograms of an integral, against numpy.histogram and closed forms."""

import math
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from sbiflow.integrate.domain import Domain
from sbiflow.integrate.histogram import with_histogram
from sbiflow.integrate.integrand import Integrand
from tests.integrate import functions

FLOAT = torch.float64


def first(x):
    return x[:, 0]


def negative_product(x):
    return -x[:, 0] * x[:, 1]


def points(n: int = 1000, dim: int = 2) -> torch.Tensor:
    return torch.rand(n, dim, dtype=FLOAT, generator=torch.Generator().manual_seed(1))


EDGES = {
    "even": [0.0, 0.25, 0.5, 0.75, 1.0],
    "uneven, not everything": [0.1, 0.2, 0.7],
    "one bin": [0.3, 0.4],
    "open": [-math.inf, 0.5, math.inf],
    "none inside": [3.0, 4.0, 5.0],
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.clone])
def test_sums_are_those_of_numpy(name, convert):
    x = points()
    x[::7, 0] = 0.5  # on an edge
    x[::11, 0] = 1.0  # on the last one
    got = with_histogram(negative_product, first, EDGES[name])(convert(x))
    assert isinstance(got, torch.Tensor) == (convert is torch.Tensor.clone)
    got = np.asarray(got)
    f = negative_product(x.numpy())
    want, _ = np.histogram(x[:, 0].numpy(), EDGES[name], weights=f)
    assert got.shape == (1000, len(EDGES[name]))
    assert np.array_equal(got[:, 0], f)
    assert got[:, 1:].sum(axis=0) == pytest.approx(want, rel=1e-12)
    assert int((got[:, 1:] != 0.0).sum(axis=1).max()) <= 1  # a point is in one bin at most


def test_every_edge_belongs_to_the_bin_above_it_and_the_last_to_the_last():
    edges = [0.0, 1.0, 2.0, 3.0]
    inside = [-1e-300, 0.0, math.nextafter(1.0, 0.0), 1.0, 2.0, 3.0, math.nextafter(3.0, 4.0)]
    column = [None, 0, 0, 1, 2, 2, None]
    for x in (np.array(inside)[:, None], torch.tensor(inside, dtype=FLOAT)[:, None]):
        got = np.asarray(with_histogram(lambda x: x[:, 0] * 0 + 7.0, first, edges)(x))[:, 1:]
        for row, place in zip(got, column, strict=True):
            assert row.tolist() == [7.0 if k == place else 0.0 for k in range(3)]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_nan_stays_where_it_is(kind):
    x = torch.tensor([[math.nan, 1.0], [0.5, math.nan], [0.5, 2.0]], dtype=FLOAT)
    histogram = with_histogram(lambda x: x[:, 1], first, [0.0, 0.4, 1.0])
    got = np.asarray(histogram(x.numpy() if kind == "numpy" else x))
    want = [[1.0, 0.0, 0.0], [math.nan, 0.0, math.nan], [2.0, 0.0, 2.0]]
    assert np.array_equal(got, want, equal_nan=True)


def test_functions_that_overwrite_their_argument_do_no_harm():
    def greedy(x):
        x *= 0.0
        return x[:, 0] + 1.0

    for x in (points().numpy(), points()):
        got = np.asarray(with_histogram(greedy, first, [0.0, 0.5, 1.0])(x))
        want, _ = np.histogram(points()[:, 0].numpy(), [0.0, 0.5, 1.0])
        assert got[:, 1:].sum(axis=0).tolist() == want.tolist()


@pytest.mark.parametrize(
    ("f", "variable", "calls"),
    [
        (negative_product, first, "numpy"),
        (functions.torch_batch, first, "torch"),
        (functions.torch_batch, lambda x: x.norm(dim=1), "torch"),
    ],
)
def test_as_an_integrand(f, variable, calls):
    integrand = Integrand(
        with_histogram(f, variable, [0.0, 0.2, 0.9]), Domain.from_bounds([(0, 1)] * 2), 2000
    )
    values = integrand(points())
    assert integrand.calls == calls and integrand.components == 3
    got = values.over(torch.zeros(1000, dtype=FLOAT))
    plain = Integrand(f, Domain.from_bounds([(0, 1)] * 2), 2000)(points())
    torch.testing.assert_close(
        got[:, 0], plain.over(torch.zeros(1000, dtype=FLOAT))[:, 0], rtol=1e-13, atol=0.0
    )
    inside = (variable(points()) <= 0.9).to(FLOAT)
    torch.testing.assert_close(got[:, 1] + got[:, 2], got[:, 0] * inside, rtol=1e-13, atol=0.0)


def test_bins_of_an_exponential_on_the_half_line():
    """∫ over bin of e^-x, by the midpoint rule in the cube: O(h) at the edges of the bins."""
    edges = [0.0, 0.5, 2.0, math.inf]
    histogram = with_histogram(lambda x: np.exp(-x[:, 0]), first, edges)
    n = 200_000
    u = ((torch.arange(n, dtype=FLOAT) + 0.5) / n)[:, None]
    values = Integrand(histogram, Domain.from_bounds([(0.0, math.inf)]), 2 * n)(u)
    got = values.over(torch.zeros(n, dtype=FLOAT)).mean(dim=0)
    want = [1.0, *(math.exp(-low) - math.exp(-high) for low, high in pairwise(edges))]
    assert got.tolist() == pytest.approx(want, abs=2e-5)


def test_it_can_be_sent_to_a_process():
    histogram = with_histogram(negative_product, first, np.linspace(0.0, 1.0, 11))
    back = pickle.loads(pickle.dumps(histogram))
    assert back == histogram and np.array_equal(back(points().numpy()), histogram(points().numpy()))


@pytest.mark.parametrize(
    "edges", [[0.0], [], [1.0, 0.0], [0.0, 0.0], [0.0, math.nan, 1.0], [[0.0, 1.0]], 3.0]
)
def test_refused_edges(edges):
    with pytest.raises(ValueError, match="edges: expected two or more increasing numbers, got"):
        with_histogram(first, first, edges)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.clone])
def test_refused_functions(convert):
    x = convert(points(5))
    for f, variable, message in (
        (lambda x: x, first, "f: expected shape (5,), got (5, 2)"),
        (first, lambda x: x, "variable: expected shape (5,), got (5, 2)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            with_histogram(f, variable, [0.0, 1.0])(x)
    with pytest.raises(ValueError, match=re.escape("expected points of shape (n, D), got (2,)")):
        with_histogram(first, first, [0.0, 1.0])(x[0])
