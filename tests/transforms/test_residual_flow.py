"""The residual flow: its Lipschitz bound, its inverse, and the estimate of its log-determinant.

The estimate's gate is three standard errors of the mean of 6,000 independent draws: with fixed seeds a right estimate
fails one of the 12 comparisons with probability 0.03, once, when a seed is chosen; the truncated series is off by more
than ten.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sbiflow.transforms import residual_flow
from sbiflow.transforms.lipschitz import lipswish
from sbiflow.transforms.residual_flow import ALWAYS, EXACT_UP_TO, ResidualFlow
from tests.transforms.case import generator, randomise

DRAWS = 6_000


def extreme(dim: int, context: int = 0, scale: float = 6.0, **options: float) -> ResidualFlow:
    """Every parameter of the scale, those of inner layers too; float64."""
    torch.manual_seed(0)
    flow = ResidualFlow(dim, context, hidden=16, **options)  # type: ignore[arg-type]
    return randomise(flow, scale, 5, ends=("",)).double().eval()  # type: ignore[return-value]


def steep(dim: int, lipschitz: float) -> ResidualFlow:
    """J nearly lipschitz / 1.1 along most directions: the series converges as slowly as it may."""
    flow = ResidualFlow(dim, 0, hidden=16, layers=1, lipschitz=lipschitz).double().eval()
    entry, ends = flow.net.layers[0], flow.net.exit
    with torch.no_grad():
        entry.weight.copy_(2 * torch.eye(16, dim))
        entry.bias.fill_(3.0)
        ends.weight.copy_(2 * torch.eye(dim, 16))
        flow.net.sharpness.fill_(2.0)
    return flow


def points(rows: int, dim: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(rows, dim, generator=generator(seed), dtype=torch.float64)


def jacobians(flow: ResidualFlow, x: Tensor, context: Tensor | None = None) -> Tensor:
    """dg/dx by autograd, (rows, D, D)."""
    x = x.clone().requires_grad_()
    outputs = flow(x, context)[0] - x
    return torch.stack(
        [torch.autograd.grad(outputs[:, i].sum(), x, retain_graph=True)[0] for i in range(x.shape[1])], 1
    )


def test_the_activation_and_its_slope() -> None:
    x = torch.linspace(-30, 30, 20_001, dtype=torch.float64).requires_grad_()
    for sharpness in (1e-3, 0.5, 1.0, 20.0):
        value, slope = lipswish(x, torch.tensor(sharpness, dtype=x.dtype))
        (expected,) = torch.autograd.grad(value.sum(), x)
        torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)
        assert float(slope.detach().max()) < 1 and float(slope.detach().min()) > -0.1
    torch.testing.assert_close(lipswish(x, torch.tensor(1.0))[0], torch.nn.functional.silu(x) / 1.1)


@pytest.mark.parametrize("lipschitz", [0.5, 0.97])
@pytest.mark.parametrize(("dim", "layers"), [(1, 1), (5, 2), (20, 3)])
def test_the_lipschitz_bound_holds(dim: int, layers: int, lipschitz: float) -> None:
    flow = extreme(dim, 3, layers=layers, lipschitz=lipschitz)
    context = 3 * torch.randn(500, 3, generator=generator(2), dtype=torch.float64)
    norms = torch.linalg.matrix_norm(jacobians(flow, points(500, dim), context), ord=2)
    assert float(norms.max()) <= lipschitz


def test_the_bound_is_nearly_reached_and_is_needed() -> None:
    flow, x = steep(5, 0.97), points(500, 5)
    assert float(torch.linalg.matrix_norm(jacobians(flow, x), ord=2).max()) > 0.95
    flow.net.share = 10.0  # as if the matrices were not bounded
    assert float(torch.linalg.matrix_norm(jacobians(flow, x), ord=2).max()) > 1


@pytest.mark.parametrize("lipschitz", [0.5, 0.97, 0.999])
@pytest.mark.parametrize("dim", [1, 2, 5, 30])
def test_round_trip_at_extreme_parameters(dim: int, lipschitz: float) -> None:
    flow, x = extreme(dim, 3, lipschitz=lipschitz), points(200, dim)
    context = torch.randn(200, 3, generator=generator(2), dtype=torch.float64)
    with torch.no_grad():
        y, logdet = flow(x, context)
        again, back = flow.inverse(y, context)
        torch.testing.assert_close(flow(flow.inverse(x, context)[0], context)[0], x, rtol=0, atol=1e-10)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(back, -logdet, rtol=0, atol=1e-9)


def test_the_inverse_converges_where_newton_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Banach's step is taken instead, and the miss falls by the Lipschitz constant at least: 30 / -log c turns."""
    flow, x = steep(3, 0.9), points(50, 3)
    calls = []
    monkeypatch.setattr(residual_flow, "_newton", lambda jacobian, miss: calls.append(1) or -40 * miss)
    with torch.no_grad():
        torch.testing.assert_close(flow.inverse(flow(x)[0])[0], x, rtol=0, atol=1e-10)
    assert 20 < len(calls) < 40 / -math.log(0.9)


def test_newton_needs_few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, x, calls = extreme(5, lipschitz=0.999), points(500, 5), []
    newton = residual_flow._newton
    monkeypatch.setattr(residual_flow, "_newton", lambda *a: calls.append(1) or newton(*a))
    with torch.no_grad():
        flow.inverse(flow(x)[0])
    assert len(calls) < 25


def test_what_is_not_a_number_stays_so_and_leaves_the_other_rows_alone() -> None:
    flow, y = extreme(3), points(4, 3)
    with torch.no_grad():
        expected = flow.inverse(y)
        y[1, 2], y[2, 0] = math.nan, math.inf
        found = flow.inverse(y)
    for one, other in zip(found, expected, strict=True):
        assert not torch.isfinite(one[1:3]).any()
        torch.testing.assert_close(one[[0, 3]], other[[0, 3]], rtol=1e-12, atol=1e-12)


def test_gradients_through_the_inverse_against_finite_differences() -> None:
    flow = extreme(2, 3, scale=1.0).requires_grad_()
    y, context = points(6, 2), torch.randn(6, 3, generator=generator(2), dtype=torch.float64)

    def total() -> Tensor:
        x, logdet = flow.inverse(y, context)
        return (x.square().sum(-1) + logdet).sum()

    parameters = list(flow.parameters())
    grads = torch.autograd.grad(total(), parameters)
    for parameter, grad in zip(parameters, grads, strict=True):
        step = torch.randn(parameter.shape, generator=generator(3), dtype=torch.float64)
        with torch.no_grad():
            ends = []
            for sign in (1e-6, -2e-6, 1e-6):
                parameter += sign * step
                ends.append(total())
        assert float((ends[0] - ends[1]) / 2e-6) == pytest.approx(
            float((grad * step).sum()), abs=1e-6, rel=1e-5
        )


def pull(draws: Tensor, exact: Tensor) -> float:
    """(mean - exact) in standard errors."""
    return float((draws.mean() - exact) / (draws.std() / math.sqrt(len(draws))))


@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("make", [steep, lambda dim, lipschitz: extreme(dim, lipschitz=lipschitz)])
def test_the_estimate_has_no_bias(make: object, lipschitz: float) -> None:
    flow = make(5, lipschitz)  # type: ignore[operator]
    with torch.no_grad():
        for x in points(2, 5):
            draws = flow.log_det_estimate(x.expand(DRAWS, -1), generator=generator(4))
            assert draws.shape == (DRAWS,) and float(draws.std()) > 1e-4
            off = pull(draws, flow(x)[1])
            print(f"\nestimate of the log-determinant, bound {lipschitz}: {off:+.2f} standard errors", end="")
            assert abs(off) < 3


def test_a_truncated_series_fails_the_same_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the roulette the terms beyond `ALWAYS` are missing."""
    flow, x = steep(5, 0.97), points(1, 5)[0]
    series = residual_flow._series
    monkeypatch.setattr(residual_flow, "_series", lambda f, s, v, n, q: series(f, s, v, 0 * n, q))
    with torch.no_grad():
        draws = flow.log_det_estimate(x.expand(DRAWS, -1), generator=generator(4))
        assert abs(pull(draws, flow(x)[1])) > 10
    assert ALWAYS == 4


def test_the_gradient_of_the_estimate_has_no_bias() -> None:
    """In direction of the inputs and of a weight; 200 means of 100 draws each."""
    flow, x = steep(5, 0.9), points(1, 5)[0].requires_grad_()
    leaves = [x, flow.net.layers[0].bias]
    exact = torch.autograd.grad(flow(x)[1], leaves)
    found = []
    dice = generator(5)
    for _ in range(200):
        value = flow.log_det_estimate(x.expand(100, -1), generator=dice).mean()
        found.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(value, leaves)]))
    draws, expected = torch.stack(found), torch.cat([grad.flatten() for grad in exact])
    moved = draws.std(0) > 1e-12
    assert moved.sum() >= 10
    pulls = (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))
    assert float(pulls[moved].abs().max()) < 4  # 10 of them: false alarms 6e-4
    torch.testing.assert_close(draws.mean(0)[~moved], expected[~moved])


def test_the_estimate_stands_in_beyond_the_stated_size_while_training_only() -> None:
    assert not ResidualFlow(EXACT_UP_TO, 0, 8).is_random
    flow, x = extreme(EXACT_UP_TO + 1), points(30, EXACT_UP_TO + 1)
    assert flow.is_random
    with torch.no_grad():
        exact = flow(x)[1]
        assert torch.equal(flow(x)[1], exact)
        flow.train()
        one, other = flow(x)[1], flow(x)[1]
    assert not torch.equal(one, other)
    assert abs(pull(one - exact, torch.tensor(0.0))) < 3


def test_without_a_field_it_is_a_shift() -> None:
    flow = ResidualFlow(3, 0, 8).double()
    flow.net.exit.bias.data = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x = points(5, 3)
    y, logdet = flow(x)
    torch.testing.assert_close(y, x + flow.net.exit.bias)
    assert torch.equal(logdet, torch.zeros_like(logdet))


def test_bad_sizes_are_refused() -> None:
    for lipschitz in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"a number in \(0, 1\), got"):
            ResidualFlow(2, 0, 8, lipschitz=lipschitz)
    with pytest.raises(ValueError, match="positive sizes, got 2 columns, 2 x 0"):
        ResidualFlow(2, 0, 0)
