"""The user's function behind the integrator: how it is called, what is counted, what is refused."""

import math
import multiprocessing
import re
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sbiflow.integrate import integrand as integrand_module
from sbiflow.integrate.budget import Budget
from sbiflow.integrate.domain import Domain
from sbiflow.integrate.integrand import BudgetExceeded, Integrand, Values
from sbiflow.integrate.probing import probe_size
from sbiflow.integrate.values import largest_modulus
from tests.integrate import functions

FLOAT = torch.float64
BOX = Domain.from_bounds([(0.0, 2.0), (-1.0, 1.0), (0.0, 5.0)])  # volume 20
LOG_VOLUME = math.log(20.0)


def cube(n: int = 100, dim: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, dim, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))


class Counted:
    """Counts the rows that a function is really evaluated at."""

    def __init__(self, f, transposed=False):
        self.f, self.transposed, self.rows = f, transposed, 0

    def __call__(self, x):
        self.rows += 1 if x.ndim == 1 else x.shape[1 if self.transposed else 0]
        return self.f(x)


def linear(values: Values) -> torch.Tensor:
    """f_0 itself."""
    return values.sign * torch.exp(values.log_abs - values.log_jacobian)


# --- how f is called

FORMS = {
    "numpy": (functions.numpy_batch, 1),
    "torch": (functions.torch_batch, 1),
    "scalar": (functions.scalar, 1),
}


@pytest.mark.parametrize("mode", FORMS)
@pytest.mark.parametrize("calls", ["auto", "given"])
def test_every_form_gives_the_same_values(mode, calls):
    f, components = FORMS[mode]
    integrand = Integrand(f, BOX, 1000, calls="auto" if calls == "auto" else mode)
    values = integrand(cube())
    x, log_jacobian = BOX.to_x(cube())
    assert integrand.calls == mode and integrand.components == components
    assert values.components is None and values.log_scale is values.log_abs
    torch.testing.assert_close(linear(values), functions.truth(x), rtol=1e-13, atol=0.0)
    assert torch.equal(values.x, x) and torch.equal(values.log_jacobian, log_jacobian)
    assert {-1.0, 1.0} == set(values.sign.tolist())
    assert len(values) == 100 and values.log_abs.dtype == values.sign.dtype == FLOAT


@pytest.mark.parametrize("f", [functions.vector, functions.vector_scalar])
def test_vector_valued(f):
    integrand = Integrand(f, BOX, 1000)
    values = integrand(cube())
    x, log_jacobian = BOX.to_x(cube())
    assert integrand.components == 3
    want = torch.from_numpy(functions.vector(x.numpy())) * torch.exp(log_jacobian)[:, None]
    torch.testing.assert_close(values.over(torch.zeros(100, dtype=FLOAT)), want, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(linear(values), functions.truth(x), rtol=1e-13, atol=0.0)


SCALAR_ONLY = {
    "a product of coordinates": lambda x: x[0] * x[1],
    "a sum over everything": lambda x: np.sum(x),
    "a cut": lambda x: 1.0 if x[0] > 0.5 else 0.0,
    "a matrix": lambda x: x @ np.diag([1.0, 2.0, 3.0][: len(x)] + [1.0] * (len(x) - 3)) @ x,
    "a constant": lambda x: 1.0,
    "math": lambda x: math.exp(-(x[0] ** 2)),
    "seven components, as many as rows of the probe": lambda x: [x[0] + k for k in range(7)],
    "eleven components": lambda x: np.array([x[0] + k for k in range(11)]),
    "as many components as axes": lambda x: 2.0 * x + np.arange(len(x)).sum() * x[0],
    "sorted": lambda x: np.sort(x, axis=0)[0],
    "cumulative along the first axis": lambda x: np.cumsum(x, axis=0)[-1],
    "a tensor": lambda x: torch.tensor(x[0] * x[1]),
    "one component": lambda x: np.array([x[0]]),
}


@pytest.mark.parametrize("dim", [3, 7, 11])
@pytest.mark.parametrize("name", SCALAR_ONLY)
def test_functions_of_one_point_are_not_taken_for_batches(name, dim):
    f = SCALAR_ONLY[name]
    integrand = Integrand(f, Domain.from_bounds([(0.0, 1.0)] * dim), 1000)
    u = cube(20, dim)
    values = integrand(u)
    want = np.array([np.asarray(f(row)) for row in u.numpy()]).reshape(20, -1)
    got = values.over(torch.zeros(20, dtype=FLOAT))
    assert got.shape == want.shape and got.numpy() == pytest.approx(want, rel=1e-12)
    assert integrand.calls == "scalar"


def test_the_probe_has_another_number_of_rows_than_axes():
    assert [probe_size(dim) for dim in (1, 6, 7, 8, 11)] == [7, 7, 11, 7, 7]


BATCHES = {
    "einsum": lambda x: np.einsum("ni,ni->n", x, x),
    "the last axis": lambda x: np.prod(x, axis=-1),
    "vector, K = rows of the probe": lambda x: x[:, :1] * np.arange(1.0, 8.0),
    "a column": lambda x: x[:, :1],
    "float32": lambda x: np.exp(-np.sum(x.astype(np.float32) ** 2, axis=1)),
    "matrix product": lambda x: np.exp(-50.0 * ((x - 0.5) @ np.full((x.shape[1], 40), 0.3)) ** 2).sum(axis=1),
    "a list": lambda x: list(x[:, 0]),
    "a torch answer": lambda x: torch.as_tensor(x).sum(dim=1),
    "mutates its argument": lambda x: np.square(x, out=x)[:, 0],
}


@pytest.mark.parametrize("dim", [3, 7, 11])
@pytest.mark.parametrize("name", BATCHES)
def test_batches_stay_batches(name, dim):
    f = BATCHES[name]
    integrand = Integrand(f, Domain.from_bounds([(0.0, 1.0)] * dim), 1000)
    values = integrand(cube(20, dim))
    assert integrand.calls == "numpy"
    want = np.asarray(f(cube(20, dim).numpy().copy())).reshape(20, -1)
    assert values.over(torch.zeros(20, dtype=FLOAT)).numpy() == pytest.approx(want, rel=1e-6)
    assert torch.equal(values.x, cube(20, dim))


@pytest.mark.parametrize("mode", ["numpy", "torch", "scalar"])
def test_functions_may_overwrite_their_argument(mode):
    def greedy(x):
        x *= 3.0
        return x[..., 0]

    values = Integrand(greedy, BOX, 1000, calls=mode)(cube())
    assert torch.equal(values.x, BOX.to_x(cube())[0])
    torch.testing.assert_close(linear(values), 3.0 * values.x[:, 0], rtol=1e-13, atol=0.0)


def test_one_axis():
    one = Domain.from_bounds([(0.0, 1.0)])
    for f in (lambda x: x[:, 0], lambda x: x.square().sum(dim=1).sqrt(), lambda x: math.sqrt(x[0] ** 2)):
        assert linear(Integrand(f, one, 100)(cube(5, 1))).tolist() == pytest.approx(cube(5, 1)[:, 0].tolist())


def test_a_torch_module_with_parameters():
    layer = torch.nn.Linear(3, 1, dtype=FLOAT)
    integrand = Integrand(lambda x: layer(x)[:, 0], BOX, 1000)
    values = integrand(cube())
    assert integrand.calls == "torch" and not values.log_abs.requires_grad
    torch.testing.assert_close(linear(values), layer(values.x)[:, 0].detach(), rtol=1e-12, atol=1e-14)


def test_a_function_that_mixes_rows_is_refused_with_its_three_failures():
    def normalised(x):
        return x[:, 0] / x[:, 0].mean()

    message = (
        r"(?s)expected a function of \(7, 3\) NumPy or torch points.*or of one point \(3,\)"
        r".*\n  numpy: ValueError: a row gives another value on its own than in a batch"
        r"\n  torch: ValueError: a row gives another value on its own than in a batch"
        r"\n  scalar: IndexError: [^\n]*$"
    )
    with pytest.raises(ValueError, match=message):
        Integrand(normalised, BOX, 1000).prepare()
    values = Integrand(normalised, BOX, 1000, calls="numpy")(cube())  # the user insists
    assert float(linear(values).mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("relative", [1.0, 1e-5])
@pytest.mark.parametrize(
    ("mode", "noise"),
    [
        ("numpy", lambda x, rng: x[..., 0] + x[..., 0] * rng.normal(size=x.shape[:-1])),
        ("torch", lambda x, rng: x.select(-1, 0) * (1.0 + torch.from_numpy(rng.normal(size=x.shape[:-1])))),
        ("scalar", lambda x, rng: float(x[0]) * (1.0 + rng.normal())),
    ],
)
def test_stochastic_integrands_need_the_user_to_say_so(mode, noise, relative):
    rng = np.random.default_rng(1)

    class Small:
        """Noise of a relative size that rounding does not reach."""

        def normal(self, size=None):
            return relative * rng.normal(size=size)

    def noisy(x):
        return noise(x, Small())

    with pytest.raises(ValueError, match=f'stochastic or keeps a state; calls="{mode}" skips this test'):
        Integrand(noisy, BOX, 1000)(cube())
    assert len(Integrand(noisy, BOX, 1000, calls=mode)(cube())) == 100


def test_a_noisy_log_likelihood_is_noticed_beside_large_values():
    rng = np.random.default_rng(1)

    def noisy(x):
        return -1e4 * (1.0 + 50.0 * x[:, 0]) + 0.1 * rng.normal(size=len(x))

    with pytest.raises(ValueError, match="stochastic"):
        Integrand(noisy, BOX, 1000, log=True).prepare()


def test_a_single_row_may_round_differently():
    def float32_network(x):
        weights = np.linspace(-1.0, 1.0, 3 * 257, dtype=np.float32).reshape(3, 257)
        return np.tanh(x.astype(np.float32) @ weights).sum(axis=1)

    integrand = Integrand(float32_network, BOX, 1000)
    integrand.prepare()
    assert integrand.calls == "numpy"


def test_warnings_of_the_attempts_are_not_shown_but_those_of_the_work_are():
    integrand = Integrand(lambda x: np.log(x[:, 1]), BOX, 1000)  # x1 may be negative
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integrand.prepare()
    assert integrand.calls == "numpy"
    with pytest.warns(RuntimeWarning, match="invalid value encountered in log"):
        integrand(cube())


def test_vegas_batch_integrands_are_numpy():
    vegas = pytest.importorskip("vegas")

    class Left(vegas.BatchIntegrand):
        def __call__(self, x):
            return functions.numpy_batch(x)

    class Right(vegas.RBatchIntegrand):
        def __call__(self, x):
            return x[0] - x[1] ** 2

    marked = [
        vegas.batchintegrand(lambda x: x[:, 0] - x[:, 1] ** 2),
        vegas.lbatchintegrand(lambda x: x[:, 0] - x[:, 1] ** 2),
        vegas.rbatchintegrand(lambda x: x[0] - x[1] ** 2),
        Left(),
        Right(),
    ]
    for f in marked:
        counted = Counted(f, transposed=f.fcntype == "rbatch")
        counted.fcntype = f.fcntype
        integrand = Integrand(counted, BOX, 1000)
        values = integrand(cube())
        assert integrand.calls == "numpy" and integrand.n_evals == counted.rows == 107
        torch.testing.assert_close(linear(values), functions.truth(values.x), rtol=1e-13, atol=0.0)
    vector = Integrand(vegas.rbatchintegrand(lambda x: np.stack([x[0], x[1], x[2], x[0]])), BOX, 1000)
    assert vector.components == 4


# --- what is counted


@pytest.mark.parametrize(
    ("f", "calls", "probe"),
    [
        (functions.numpy_batch, "auto", 21),  # a batch, once more, and its rows
        (functions.numpy_batch, "numpy", 7),
        (functions.torch_batch, "auto", 7 + 21),
        (functions.torch_batch, "torch", 7),
        (functions.scalar, "auto", 7 + 7 + 4),
        (functions.scalar, "scalar", 2),
        (functions.vector, "auto", 21),
    ],
)
def test_every_evaluation_is_counted(f, calls, probe):
    counted = Counted(f)
    integrand = Integrand(counted, BOX, 1000, calls=calls)
    assert (integrand.n_evals, integrand.remaining, integrand.calls) == (0, 1000, calls)
    integrand.prepare()
    integrand.prepare()  # once only
    assert integrand.n_evals == counted.rows == probe
    integrand(cube(100))
    integrand(cube(30))
    assert integrand.n_evals == counted.rows == probe + 130
    assert integrand.remaining == 1000 - probe - 130


def test_the_budget_is_never_exceeded():
    counted = Counted(functions.numpy_batch)
    integrand = Integrand(counted, BOX, 121)
    integrand.prepare()
    with pytest.raises(BudgetExceeded, match=re.escape("at most 100 more evaluations (of 121), got 101")):
        integrand(cube(101))
    assert counted.rows == integrand.n_evals == 21
    assert len(integrand(cube(100))) == 100 and integrand.remaining == 0
    with pytest.raises(BudgetExceeded):
        integrand(cube(1))
    assert counted.rows == 121 and issubclass(BudgetExceeded, ValueError)


@pytest.mark.parametrize("budget", [1, 6, 7, 13, 15, 20, 27])
def test_a_budget_too_small_for_the_probe(budget):
    counted = Counted(functions.torch_batch)
    with pytest.raises(BudgetExceeded):
        Integrand(counted, BOX, budget)(cube(1))
    assert counted.rows <= budget


def test_budgets_as_the_user_writes_them():
    assert [Budget(n).total for n in (1, 1e6, np.int64(5), np.float64(1e3))] == [1, 1_000_000, 5, 1000]
    for wrong in (0, -1, 1.5, math.nan, math.inf, "1e6", True, None):
        with pytest.raises(ValueError, match="budget: expected a whole number >= 1, got"):
            Budget(wrong)


def test_no_points_cost_nothing_and_do_not_reach_f():
    def refuses_none(x):
        return np.max(x) * 0.0 + x[:, 0]  # np.max raises for no rows

    integrand = Integrand(refuses_none, BOX, 1000)
    assert len(integrand(cube(0))) == 0
    assert integrand.n_evals == 21 and integrand(cube(0)).x.shape == (0, 3)
    vector = Integrand(functions.vector, BOX, 1000)
    assert vector(cube(0)).components.shape == (0, 3)


def test_the_time_in_f_is_measured_and_no_other(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(integrand_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def slow(x):
        clock.now += 2.0
        return x[:, 0]

    integrand = Integrand(slow, BOX, 1000, calls="numpy")
    integrand(cube())  # the probe and a batch
    clock.now += 100.0
    integrand(cube())
    assert integrand.seconds == 6.0


# --- values that are not plain numbers


@pytest.mark.parametrize(
    ("f", "want"),
    [
        (lambda x: (4.0 * x[:, 0]).astype(int), lambda x: torch.floor(4.0 * x[:, 0])),
        (lambda x: x[:, 0] > 1.0, lambda x: (x[:, 0] > 1.0).to(FLOAT)),
        (lambda x: x[:, 0].astype(np.float32), lambda x: x[:, 0]),
        (lambda x: x[:, 0].astype(np.float16), lambda x: x[:, 0]),
        (lambda x: x[:, 0].astype(np.longdouble), lambda x: x[:, 0]),
        (lambda x: x[:, 0].astype(">f8"), lambda x: x[:, 0]),
        (lambda x: x[::-1][::-1, 0], lambda x: x[:, 0]),
        (lambda x: np.broadcast_to(2.0, len(x)), lambda x: torch.full((len(x),), 2.0, dtype=FLOAT)),
        (lambda x: torch.as_tensor(x)[:, 0].float(), lambda x: x[:, 0]),
        (lambda x: torch.as_tensor(x)[:, 0] > 1.0, lambda x: (x[:, 0] > 1.0).to(FLOAT)),
        (lambda x: (4 * torch.as_tensor(x)[:, 0]).to(torch.uint8), lambda x: torch.floor(4.0 * x[:, 0])),
    ],
)
def test_numbers_of_other_types(f, want):
    values = Integrand(f, BOX, 1000)(cube())
    torch.testing.assert_close(linear(values), want(values.x), rtol=1e-3, atol=0.0)
    assert values.log_abs.dtype == FLOAT


@pytest.mark.parametrize(
    ("f", "calls", "message"),
    [
        (lambda x: x[:, 0] + 1j, "numpy", "expected real numbers, got ndarray of complex128"),
        (lambda x: x[:, 0] + 1j, "torch", "expected real numbers, got torch.complex128"),
        (lambda x: x[0] + 1j, "scalar", "expected real numbers, got list of complex128"),
        (lambda x: None, "numpy", "expected real numbers, got NoneType of object"),
        (lambda x: None, "scalar", "expected real numbers, got list of object"),
        (lambda x: {"a": x[:, 0]}, "numpy", "expected real numbers, got dict of object"),
        (lambda x: np.full(len(x), "1"), "numpy", "expected real numbers, got ndarray of <U1"),
        (lambda x: [[1.0], [1.0, 2.0]], "numpy", "expected one array, got list"),
        (lambda x: x.T, "numpy", "expected shape (7,) or (7, K) for 7 rows, got (3, 7)"),
        (lambda x: x[:, :, None], "numpy", "expected shape (7,) or (7, K) for 7 rows, got (7, 3, 1)"),
        (lambda x: x[:, :0], "numpy", "expected shape (7,) or (7, K) for 7 rows, got (7, 0)"),
        (lambda x: 1.0, "numpy", "expected shape (7,) or (7, K) for 7 rows, got ()"),
        (lambda x: x.sum(), "torch", "expected shape (7,) or (7, K) for 7 rows, got ()"),
    ],
)
def test_answers_that_are_refused(f, calls, message):
    integrand = Integrand(f, BOX, 1000, calls=calls)
    with pytest.raises(ValueError, match=re.escape(message)):
        integrand.prepare()


def test_complex_answers_are_refused_by_auto():
    with pytest.raises(ValueError, match="numpy: ValueError: integrand: expected real numbers, got ndarray"):
        Integrand(lambda x: x[..., 0] + 1j, BOX, 1000).prepare()


def test_the_number_of_components_stays():
    def grows(x):
        return x if len(x) < 50 else x[:, :2]

    integrand = Integrand(grows, BOX, 1000)
    integrand(cube(20))
    with pytest.raises(ValueError, match="expected 3 components, got 2"):
        integrand(cube(60))


def test_a_buffer_that_f_uses_again_is_not_shared():
    buffer = np.empty((100, 2))

    def reuses(x):
        buffer[: len(x)] = x[:, :2]
        return buffer[: len(x)]

    integrand = Integrand(reuses, BOX, 1000, calls="numpy")
    first = integrand(cube(seed=1))
    before = first.over(torch.zeros(100, dtype=FLOAT)).clone()
    integrand(cube(seed=2))
    assert torch.equal(first.over(torch.zeros(100, dtype=FLOAT)), before)


# --- under- and overflow


def test_log_values_far_below_what_exp_can_hold():
    def log_f(x):
        return -1e6 - x[:, 0]

    integrand = Integrand(log_f, BOX, 1000, log=True)
    values = integrand(cube())
    torch.testing.assert_close(values.log_abs, -1e6 - values.x[:, 0] + LOG_VOLUME, rtol=1e-15, atol=0.0)
    assert values.sign.tolist() == [1.0] * 100 and integrand.n_zero == 0
    shifted = values.over(torch.full((100,), -1e6, dtype=FLOAT))[:, 0]
    torch.testing.assert_close(shifted, 20.0 * torch.exp(-values.x[:, 0]), rtol=1e-9, atol=0.0)


def test_values_that_the_jacobian_would_push_over_the_edge():
    for size in (1e-320, 1e308):
        domain = Domain.from_bounds([(0.0, 1e20 if size > 1 else 1e-20)] * 3)
        values = Integrand(lambda x, s=size: np.full(len(x), -s), domain, 1000)(cube())
        want = math.log(size) + 3 * math.log(domain.high[0])
        assert values.log_abs.tolist() == pytest.approx([want] * 100, rel=1e-14)
        assert values.sign.tolist() == [-1.0] * 100


def test_components_where_the_first_vanishes():
    def f(x):
        return np.stack([np.where(x[:, 0] > 1.0, x[:, 0], 0.0), -1e-310 * x[:, 2], 0.0 * x[:, 0]], axis=1)

    integrand = Integrand(f, Domain.from_bounds([(0.0, 2.0), (0.0, 1.0), (0.0, 1.0)]), 1000)
    values = integrand(cube())
    zero = values.x[:, 0] <= 1.0
    assert bool(zero.any()) and integrand.n_zero == int(zero.sum())
    assert bool((values.log_abs[zero] == -math.inf).all()) and bool((values.sign[zero] == 0.0).all())
    want = torch.log(1e-310 * values.x[zero, 2]) + math.log(2.0)
    torch.testing.assert_close(values.log_scale[zero], want, rtol=1e-12, atol=0.0)
    assert bool((values.components[zero] == torch.tensor([0.0, -1.0, 0.0], dtype=FLOAT)).all())
    inside = values.components[~zero]
    assert bool((inside[:, 0] == 1.0).all() and (inside.abs() <= 1.0).all())
    torch.testing.assert_close(values.log_scale[~zero], values.log_abs[~zero], rtol=1e-15, atol=0.0)


def test_points_where_every_component_vanishes():
    values = Integrand(lambda x: np.zeros((len(x), 2)), BOX, 1000)(cube())
    assert bool((values.components == 0.0).all() and (values.log_scale == -math.inf).all())
    assert bool((values.over(torch.zeros(100, dtype=FLOAT)) == 0.0).all())


def test_thousands_of_components():
    def f(x):
        return x[:, :1] ** np.linspace(0.0, 30.0, 2000)

    values = Integrand(f, BOX, 1000)(cube())
    want = torch.from_numpy(f(values.x.numpy())) * 20.0
    torch.testing.assert_close(values.over(torch.zeros(100, dtype=FLOAT)), want, rtol=1e-12, atol=0.0)


def test_infinite_limits_and_their_jacobian():
    """∫ exp(-x²/2) dx over the whole line by the midpoint rule in u, which converges fast for a smooth integrand."""
    line = Domain.from_bounds([(-math.inf, math.inf)])
    u = ((torch.arange(2000, dtype=FLOAT) + 0.5) / 2000)[:, None]
    for log, f in (
        (False, lambda x: np.exp(-0.5 * x[:, 0] ** 2)),
        (True, lambda x: -0.5 * x[:, 0] ** 2),
    ):
        values = Integrand(f, line, 3000, log=log)(u)
        mean = float(values.over(torch.zeros(2000, dtype=FLOAT)).mean())
        assert mean == pytest.approx(math.sqrt(2 * math.pi), rel=1e-12)


# --- zeros, NaN and inf


def test_zeros_nan_and_inf_are_counted_apart():
    def f(x):
        place = np.floor(x[:, 0] * 10.0)  # x0 in [0, 2): twenty classes of five points
        return np.select(
            [place == 1, place == 2, place == 3, place == 4], [0.0, np.nan, np.inf, -np.inf], -1.0
        )

    u = cube(100)
    u[:, 0] = (torch.arange(100, dtype=FLOAT) + 0.5) / 100
    integrand = Integrand(f, BOX, 1000)
    values = integrand(u)
    assert (integrand.n_zero, integrand.n_nan, integrand.n_inf) == (5, 5, 10)
    gone = (values.x[:, 0] >= 0.1) & (values.x[:, 0] < 0.5)
    assert bool((values.log_abs[gone] == -math.inf).all() and (values.sign[gone] == 0.0).all())
    assert values.log_abs[~gone].tolist() == pytest.approx([LOG_VOLUME] * 80)
    integrand(u)
    assert (integrand.n_zero, integrand.n_nan, integrand.n_inf) == (10, 10, 20)


def test_a_component_that_is_not_finite_does_not_take_the_others_along():
    table = np.array([[1.0, 2.0], [1.0, np.nan], [np.inf, 3.0], [np.nan, np.inf], [0.0, np.inf], [0.0, 4.0]])

    def f(x):
        return table[(x[:, 0] * 3.0).astype(int)]

    u = cube(6)
    u[:, 0] = (torch.arange(6, dtype=FLOAT) + 0.5) / 6
    integrand = Integrand(f, BOX, 1000)
    got = integrand(u).over(torch.zeros(6, dtype=FLOAT)) / 20.0
    assert got.numpy() == pytest.approx(np.where(np.isfinite(table), table, 0.0))
    assert (integrand.n_nan, integrand.n_inf, integrand.n_zero) == (2, 2, 1)


def test_log_values_that_are_not_finite():
    table = np.array([-math.inf, math.nan, math.inf, -5.0])
    u = cube(4)
    u[:, 0] = (torch.arange(4, dtype=FLOAT) + 0.5) / 4
    integrand = Integrand(lambda x: table[(x[:, 0] * 2.0).astype(int)], BOX, 1000, log=True)
    values = integrand(u)
    assert values.log_abs.tolist() == pytest.approx([-math.inf, -math.inf, -math.inf, LOG_VOLUME - 5.0])
    assert values.sign.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert (integrand.n_zero, integrand.n_nan, integrand.n_inf) == (1, 1, 1)


@pytest.mark.parametrize(
    ("bad", "log"),
    [(math.nan, False), (math.inf, False), (-math.inf, False), (math.nan, True), (math.inf, True)],
)
def test_raising_shows_the_first_offending_point(bad, log):
    u = torch.full((5, 3), 0.25, dtype=FLOAT)
    u[3] = torch.tensor([0.75, 0.5, 0.1], dtype=FLOAT)
    u[4] = u[3]
    integrand = Integrand(lambda x: np.where(x[:, 0] == 1.5, bad, 1.0), BOX, 1000, log=log, nonfinite="raise")
    message = f"expected finite values, got [{bad}] at x = [1.5, 0, 0.5]"
    with pytest.raises(ValueError, match=re.escape(message)):
        integrand(u)


def test_raising_leaves_zeros_alone():
    log_f = Integrand(lambda x: np.full(len(x), -np.inf), BOX, 1000, log=True, nonfinite="raise")
    assert bool((log_f(cube()).log_abs == -math.inf).all()) and log_f.n_zero == 100
    f = Integrand(lambda x: np.zeros(len(x)), BOX, 1000, nonfinite="raise")
    assert bool((f(cube()).sign == 0.0).all()) and f.n_zero == 100


@pytest.mark.parametrize("size", [1, 2, 3, 8, 17, 64, 1000])
def test_a_nan_is_seen_in_any_column(size):
    for column in {0, size // 2, size - 1}:
        for other in (1.0, math.inf):
            f = torch.full((3, size), other, dtype=FLOAT)
            f[1, column] = math.nan
            assert torch.isnan(largest_modulus(f)).tolist() == [False, True, False]


# --- errors of f


@pytest.mark.parametrize("executor", ["none", "threads", "processes"])
def test_an_error_of_f_says_where(executor, processes):
    with ThreadPoolExecutor(2) as threads:
        pool = {"none": None, "threads": threads, "processes": processes}[executor]
        domain = Domain.from_bounds([(0.0, 3.0)] * 2)
        integrand = Integrand(functions.fails_at_large_x, domain, 1000, calls="numpy", executor=pool)
        integrand._caller, integrand._components = integrand_ready(domain)
        u = torch.full((40, 2), 0.5, dtype=FLOAT)
        u[33, 0] = 0.9
        with pytest.raises(ArithmeticError, match="no convergence") as caught:
            integrand(u)
    rows = 40 if pool is None else 5
    note = f"raised by the integrand for a batch of {rows} rows, x from [1.5, 1.5] to [2.7, 1.5]"
    assert caught.value.__notes__ == [note]


def integrand_ready(domain):
    """A prepared integrand's caller: the probe of `fails_at_large_x` itself would fail."""
    safe = Integrand(functions.fails_at_large_x, Domain.from_bounds([(0.0, 1.0)] * domain.dim), 1000)
    safe.prepare()
    return safe._caller, safe._components


def test_an_error_of_a_scalar_f_has_the_point():
    def f(x):
        if x[0] > 1.9:
            raise ZeroDivisionError("a pole")
        return math.exp(-x[0])

    integrand = Integrand(f, BOX, 1000, calls="scalar")
    u = torch.full((5, 3), 0.5, dtype=FLOAT)
    u[2] = torch.tensor([0.96875, 0.75, 0.5], dtype=FLOAT)
    with pytest.raises(ZeroDivisionError) as caught:
        integrand(u)
    assert caught.value.__notes__ == ["raised by the integrand at x = [1.9375, 0.5   , 2.5   ]"]


# --- executors


@pytest.fixture(scope="module")
def processes():
    """Two worker processes, not forked from this one (torch's threads do not survive that)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sbiflow.integrate.integrand", "tests.integrate.functions"])
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        yield pool


class Recorded(Executor):
    """Runs at once, and remembers the sizes of what it got."""

    def __init__(self, workers=None):
        self.sizes = []
        if workers:
            self._max_workers = workers

    def submit(self, fn, /, *args, **kwargs):
        self.sizes.append(len(args[1]))
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.mark.parametrize(
    "f", [*(form[0] for form in FORMS.values()), functions.vector, functions.vector_scalar]
)
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_executors_give_the_same_values_in_the_same_order(f, kind, processes):
    want = Integrand(f, BOX, 1000)(cube(101))
    with ThreadPoolExecutor(3) as threads:
        integrand = Integrand(f, BOX, 1000, executor=threads if kind == "threads" else processes)
        got = integrand(cube(101))
        assert len(integrand(cube(0))) == 0 and len(integrand(cube(1))) == 1
    assert torch.equal(got.log_abs, want.log_abs) and torch.equal(got.sign, want.sign)
    assert (got.components is None) == (want.components is None)
    if want.components is not None:
        assert torch.equal(got.components, want.components)


@pytest.mark.parametrize(("workers", "chunks"), [(1, 4), (3, 12), (None, 128)])
def test_about_four_chunks_a_worker(workers, chunks):
    executor = Recorded(workers)
    Integrand(functions.numpy_batch, BOX, 10_000, executor=executor)(cube(1003))
    assert len(executor.sizes) == chunks and sum(executor.sizes) == 1003
    assert max(executor.sizes) - min(executor.sizes) <= 1
    small = Recorded(workers)
    Integrand(functions.numpy_batch, BOX, 10_000, executor=small)(cube(2))
    assert small.sizes == [1, 1]


def test_workers_that_disagree_about_the_components():
    def odd(x):
        return x[:, : 2 if float(x[0, 0]) > 1.0 else 3]

    u = cube(8)
    u[:, 0] = torch.tensor([0.1] * 4 + [0.9] * 4, dtype=FLOAT)
    integrand = Integrand(odd, BOX, 1000, calls="numpy", executor=Recorded(1))
    with pytest.raises(ValueError, match=re.escape("expected one number of components K, got [2, 3]")):
        integrand(u)


def test_a_function_that_cannot_be_pickled_is_refused_at_once(processes):
    with pytest.raises(ValueError, match="integrand: expected one that can be sent to a process, got"):
        Integrand(lambda x: x[:, 0], BOX, 1000, executor=processes)


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"f": 3.0}, "integrand: expected a function, got float"),
        ({"calls": "vector"}, "calls: expected one of auto, numpy, torch, scalar, got 'vector'"),
        ({"nonfinite": "ignore"}, "nonfinite: expected one of zero, raise, got 'ignore'"),
        ({"budget": 0}, "budget: expected a whole number >= 1, got 0"),
    ],
)
def test_refused_arguments(arguments, message):
    options = {"f": functions.numpy_batch, "domain": BOX, "budget": 1000, **arguments}
    with pytest.raises(ValueError, match=re.escape(message)):
        Integrand(options.pop("f"), options.pop("domain"), options.pop("budget"), **options)


def test_a_log_integrand_has_one_component():
    with pytest.raises(ValueError, match="expected one value per point with log=True, got 3"):
        Integrand(functions.vector, BOX, 1000, log=True)(cube())


@pytest.mark.gpu
@pytest.mark.parametrize("f", [functions.numpy_batch, functions.torch_batch, functions.scalar])
def test_on_a_gpu(f):
    integrand = Integrand(f, BOX, 1000)
    values = integrand(cube().cuda())
    assert values.log_abs.is_cuda and values.x.is_cuda
    assert integrand.calls == {functions.torch_batch: "torch", functions.numpy_batch: "numpy"}.get(
        f, "scalar"
    )
    torch.testing.assert_close(linear(values).cpu(), functions.truth(values.x.cpu()), rtol=1e-12, atol=0.0)


@pytest.mark.gpu
def test_torch_comes_first_on_a_gpu():
    integrand = Integrand(lambda x: x[:, 0] * 2.0, BOX, 1000)
    assert integrand(cube().cuda()).x.is_cuda and integrand.calls == "torch" and integrand.n_evals == 121
