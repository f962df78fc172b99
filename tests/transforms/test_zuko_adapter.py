"""zuko's transforms behind nflows' interface: the same maps as zuko's, and what zuko 1.6 gets wrong, measured.

The tests named `test_zukos_own_...` hold zuko itself to what the adapter does: they fail if a later zuko is better,
and the adapter can then do less. Properties of every family are in `test_catalogue` and `tests/test_flows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import special
from torch import Tensor, nn

from sbiflow.transforms.gaussianize import Gaussianize
from sbiflow.transforms.zuko_adapter import Integrated, SharpEdges, WholeLine, ZukoTransform, search
from tests.transforms.case import generator, randomise

zuko = pytest.importorskip("zuko")
from zuko.flows import autoregressive, continuous, neural, polynomial  # noqa: E402
from zuko.transforms import BoundedBernsteinTransform, GaussianizationTransform  # noqa: E402


def masked(univariate: object, shapes: list[tuple[int, ...]]) -> ZukoTransform:
    """An autoregressive transform of three columns given two, with random parameters, in float64."""
    torch.manual_seed(0)
    lazy = autoregressive.MaskedAutoregressiveTransform(
        3, 2, univariate=univariate, shapes=shapes, hidden_features=(8,)
    )
    return randomise(ZukoTransform(lazy, 3, 2), 1.0, 5).double()  # type: ignore[return-value]


def umnn(wrap: object = WholeLine) -> ZukoTransform:
    return masked(wrap(neural.UMNN(4, stack=3, hidden_features=(8, 8))), [(4,), ()])  # type: ignore[operator]


def rows() -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(20, size, generator=generator(size), dtype=torch.float64) for size in (3, 2))  # type: ignore[return-value]


def test_the_map_is_zukos() -> None:
    (x, c), transform = rows(), umnn()
    own = transform.lazy(c)
    for found, expected in (
        (transform(x, c), own.call_and_ladj(x)),
        (transform.inverse(x, c), own.inv.call_and_ladj(x)),
    ):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="expected 3 columns, got 2"):
        transform(c, c)


def gradients(transform: ZukoTransform, way: str) -> list[tuple[float, float]]:
    """Of the sum of all outputs, for each parameter in a random direction: autograd's and the central difference."""
    x, c = rows()

    def total() -> Tensor:
        outputs, logdet = getattr(transform, way)(x, c)
        return outputs.sum() + logdet.sum()

    parameters = list(transform.parameters())
    grads = torch.autograd.grad(total(), parameters, allow_unused=True)
    found = []
    for parameter, grad in zip(parameters, grads, strict=True):
        step = torch.randn(parameter.shape, generator=generator(3), dtype=torch.float64)
        ends = []
        with torch.no_grad():
            for size in (1e-5, -2e-5, 1e-5):
                parameter += size * step
                ends.append(float(total()))
        found.append((0.0 if grad is None else float((grad * step).sum()), (ends[0] - ends[1]) / 2e-5))
    return found


def mnn() -> ZukoTransform:
    return masked(WholeLine(neural.MNN(4, stack=3, hidden_features=(8, 8))), [(4,)])


@pytest.mark.parametrize(("make", "way"), [(umnn, "forward"), (mnn, "forward"), (mnn, "inverse")])
def test_gradients_of_all_weights_in_evaluation_mode(make: Callable[[], ZukoTransform], way: str) -> None:
    """Not of the inverse of UMNN, whose slope is not that of its quadrature: see below."""
    for ours, difference in gradients(make().eval(), way):  # type: ignore[arg-type]
        assert ours == pytest.approx(difference, rel=1e-4, abs=1e-4)


def test_zukos_own_gradients_in_evaluation_mode_lack_the_integrands_weights() -> None:
    transform = umnn()
    transform.lazy.eval()
    off = [abs(ours - difference) for ours, difference in gradients(transform, "forward")]
    assert max(off) > 0.1


def test_zukos_own_inverse_answers_with_the_edge() -> None:
    """f(x) = x / 10 beyond what the bisection looks at; and six digits within."""

    class Tenth(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.1 * x

    made = zuko.transforms.MonotonicTransform(Tenth())
    y = torch.tensor([0.0123, 2.0], dtype=torch.float64)
    theirs, ours = made.inv(y), search(made.call_and_ladj, y)
    torch.testing.assert_close(ours, 10 * y, rtol=1e-14, atol=0)
    assert float(theirs[1]) == pytest.approx(10) and 1e-9 < abs(float(theirs[0] - 0.123)) < 1e-6


def test_zukos_own_bernstein_polynomials_have_a_gap() -> None:
    """At -bound + 1e-5 and the other edge: no x maps there, and the round trip is off by the gap."""
    theta = torch.zeros(8, dtype=torch.float64)
    y = torch.tensor([-5 + 4e-6, 5 - 4e-6], dtype=torch.float64)
    theirs = BoundedBernsteinTransform(theta)
    ours = WholeLine(SharpEdges(BoundedBernsteinTransform))(theta)
    assert float((theirs(theirs.inv(y)) - y).abs().min()) > 1e-6
    torch.testing.assert_close(ours(ours.inv(y)), y, rtol=0, atol=1e-13)


def test_zukos_own_gaussianization_ends_at_five() -> None:
    shift, scale = torch.zeros(2, 3, dtype=torch.float64)
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    theirs, ours = GaussianizationTransform(shift, scale), Gaussianize(shift, scale)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours(x), x, rtol=1e-13, atol=1e-13)
    far = torch.tensor([-40.0, 6.0, 40.0], dtype=torch.float64)
    assert float(theirs(far).abs().max()) < 4.9
    assert not torch.isfinite(theirs.call_and_ladj(far)[1]).all()
    torch.testing.assert_close(ours(far), far, rtol=1e-13, atol=0)


def test_zukos_own_stack_loses_mass_to_its_clip() -> None:
    """One column, f2(x) = s x: only |u| < 11 s is ever reached, so the density integrates to 2 Φ(11 s) - 1."""
    flow = polynomial.SOSPF(1, transforms=2, degree=0, polynomials=1, slope=1e-3).double()
    slope = 0.1
    with torch.no_grad():
        for layer in (flow.transform.transforms[0], flow.transform.transforms[2]):
            layer.phi[0].fill_(math.sqrt(1 - 1e-3) - 1)
            layer.phi[1].zero_()
        flow.transform.transforms[2].phi[0].fill_(math.sqrt(slope - 1e-3) - 1)
        grid = torch.linspace(-4000, 4000, 800_001, dtype=torch.float64)
        mass = float(flow().log_prob(grid[:, None]).exp().sum() * (grid[1] - grid[0]))
    assert mass == pytest.approx(2 * special.ndtr(11 * slope) - 1, abs=5e-3)


def quadrature_error(scale: float, spread: float) -> float:
    """Largest relative difference of UMNN's stated slope and the central difference of its quadrature."""
    torch.manual_seed(0)
    own = randomise(neural.UMNN(4, hidden_features=(8, 8)), scale, 5, ends=("integrand.4",)).double()
    signal = torch.randn(4, generator=generator(2), dtype=torch.float64)
    made = own(signal, torch.zeros((), dtype=torch.float64))
    x = torch.linspace(-spread, spread, 201, dtype=torch.float64)
    with torch.no_grad():
        difference = (made(x + 1e-5) - made(x - 1e-5)) / 2e-5
        return float((difference / made.call_and_ladj(x)[1].exp() - 1).abs().max())


def test_zukos_own_quadrature_is_not_the_integral_of_its_slope() -> None:
    """UMNN's log-determinant is the integral's, its values are those of 32 points; autograd sees no difference.

    2e-5 of the density within three prior standard deviations, 2e-3 further out and for a steeper integrand.
    """
    assert 1e-6 < quadrature_error(1.0, 3.0) < 1e-4
    assert 1e-3 < quadrature_error(6.0, 10.0) < 1e-2


def ode() -> ZukoTransform:
    torch.manual_seed(0)
    lazy = continuous.FFJTransform(2, 2, hidden_features=(8,), activation=nn.SiLU)
    return randomise(ZukoTransform(Integrated(lazy), 2, 2), 1.0, 5).double()  # type: ignore[return-value]


def test_an_ode_is_solved_to_the_precision_of_its_dtype() -> None:
    transform, (_, x) = ode(), rows()
    with torch.no_grad():
        for found, size in ((transform, 1e-9), (ode().float(), 1e-4)):
            start = x.to(next(found.parameters()))
            y, logdet = found(start, start)
            again, back = found.inverse(y, start)
            torch.testing.assert_close(again, start, rtol=size, atol=size)
            torch.testing.assert_close(back, -logdet, rtol=size, atol=size)
        y, _ = transform(x, x)
        theirs = transform.lazy.lazy(x)
        assert float((theirs(x) - y).abs().max()) > 1e-9  # as zuko has it


def test_an_ode_with_something_not_finite_ends() -> None:
    """zuko's own halves its step for ever."""
    transform, (_, x) = ode(), rows()
    x[3, 1] = math.nan
    with pytest.raises(ValueError, match="finite vector field"):
        transform(x, x)
