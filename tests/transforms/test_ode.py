"""Initial value problems: closed forms, rows that do not know of each other, gradients, and rows that fail."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from sbiflow.transforms.ode import solve

MATRIX = torch.tensor([[-0.3, 2.0, 0.0], [-2.0, -0.3, 0.5], [0.0, 0.0, 0.7]], dtype=torch.float64)
START = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def linear(time: Tensor, state: Tensor, rows: Tensor) -> Tensor:
    return state @ MATRIX.to(state).T


@pytest.mark.parametrize("begin, end", [(0.0, 2.0), (2.0, 0.0), (0.5, 0.5)])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-10), (torch.float64, 1e-5), (torch.float32, 1e-5)], ids=str
)
@torch.no_grad()
def test_a_linear_system(dtype, tolerance, begin, end):
    """Against the matrix exponential, with an error of some tens of steps' tolerance."""
    found = solve(linear, START.to(dtype), begin, end, tolerance)
    expected = START @ torch.linalg.matrix_exp((end - begin) * MATRIX).T
    assert found.end.dtype == dtype
    torch.testing.assert_close(found.end.double(), expected, rtol=20 * tolerance, atol=20 * tolerance)
    assert (found.evaluations < (400 if tolerance < 1e-7 else 120)).all()


@torch.no_grad()
def test_the_slope_knows_time_and_row():
    """y' = row + cos(t): closed form row T + sin(T)."""
    found = solve(
        lambda time, state, rows: (rows + torch.cos(time))[:, None].expand_as(state), START, 0.0, 1.5, 1e-10
    )
    expected = START + (1.5 * torch.arange(7.0, dtype=torch.float64) + math.sin(1.5))[:, None]
    torch.testing.assert_close(found.end, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_lower_tolerance_costs_evaluations_and_gives_digits():
    exact = START @ torch.linalg.matrix_exp(2 * MATRIX).T
    found = [solve(linear, START, 0.0, 2.0, 10.0**-digits) for digits in (3, 5, 8, 11)]
    errors = [float((each.end - exact).abs().max()) for each in found]
    work = [int(each.evaluations.sum()) for each in found]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-9
    assert work == sorted(work)


RATES = torch.tensor([0.5, 200.0], dtype=torch.float64)


def decay(time: Tensor, state: Tensor, rows: Tensor) -> Tensor:
    return -RATES[rows, None] * state


@torch.no_grad()
def test_a_row_is_solved_as_if_alone():
    """A fast decay beside a slow one: the slow row keeps its result and its few evaluations. With one step size for
    both, torchdiffeq's, the slow row's result changes with its company: the check can fail."""
    both = torch.ones(2, 1, dtype=torch.float64)
    together, alone = solve(decay, both, 0.0, 2.0, 1e-5), solve(decay, both[:1], 0.0, 2.0, 1e-5)
    assert torch.equal(together.end[:1], alone.end)
    assert together.evaluations[0] == alone.evaluations[0] < together.evaluations[1] / 5

    times = torch.tensor([0.0, 2.0], dtype=torch.float64)
    theirs = [
        odeint(lambda t, y, n=n: -RATES[:n, None] * y, both[:n], times, rtol=1e-5, atol=1e-5)[-1, 0]
        for n in (1, 2)
    ]
    assert not torch.equal(*theirs)


def test_gradients_of_the_steps():
    """y' = -k y: dy(T)/dy(0) = exp(-k T), dy(T)/dk = -T y(T); rows with different steps."""
    rates = torch.tensor([0.5, 20.0], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    found = solve(lambda time, state, rows: -rates[rows, None] * state, start, 0.0, 0.5, 1e-10)
    by_start, by_rate = torch.autograd.grad(found.end.sum(), (start, rates))
    grown = torch.exp(-0.5 * rates.detach())
    torch.testing.assert_close(by_start[:, 0], grown, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(by_rate, -0.5 * grown * start.detach()[:, 0], rtol=1e-7, atol=1e-9)
    with torch.no_grad():
        plain = solve(lambda time, state, rows: -rates[rows, None] * state, start, 0.0, 0.5, 1e-10)
    torch.testing.assert_close(found.end, plain.end, rtol=1e-14, atol=1e-14)


def test_a_row_without_a_solution_is_nan_and_spoils_no_other():
    """y' = y², y(0) = 1 is infinite at t = 1; y(0) = 0.25 reaches 1 / (4 - t); a start that is NaN stays it."""
    start = torch.tensor([[1.0], [0.25], [math.nan]], dtype=torch.float64, requires_grad=True)
    power = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    found = solve(lambda time, state, rows: state.abs() ** power, start, 0.0, 2.0, 1e-8)
    assert found.end.isnan().squeeze().tolist() == [True, False, True]
    assert float(found.end[1].detach()) == pytest.approx(0.5, abs=1e-7)
    by_start, by_power = torch.autograd.grad(found.end[1].sum(), (start, power))
    assert float(by_start[1]) == pytest.approx(4.0, abs=1e-5) and math.isfinite(float(by_power))
    assert by_start[0] == 0 and by_start[2] == 0


@torch.no_grad()
def test_no_rows():
    found = solve(linear, START[:0], 0.0, 1.0, 1e-5)
    assert found.end.shape == (0, 3) and found.evaluations.shape == (0,)
