"""Signals that do not depend on some parameters: shapes, projection, redrawing, and what makes pairs of them."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats

from sbiflow import calibrate, draw_pairs, simulate, simulator_from_function
from sbiflow.calibration.predictive import predictive_check, replicate
from sbiflow.observing import (
    check_extrinsic,
    extrinsic_columns,
    noiseless,
    observe,
    projects,
    redraw_base,
    shape_difference,
    signal_shape,
    theta_for,
)
from sbiflow.priors import Prior, Sine, Uniform
from sbiflow.store import Store
from tests.quick import quick_store
from tests.toys import LinearGaussian
from tests.wave import Wave, WavePosterior

WAVE, PLAIN = Wave(), LinearGaussian()
BY_ROWS = simulator_from_function(lambda theta, rng: theta, Prior(Uniform("u", 0, 1)), x_shape=(1,))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def thetas(n, seed=1):
    return WAVE.prior.sample(n, generator(seed))


@dataclass(frozen=True)
class Dependent(Wave):
    """What is called extrinsic acts on the signal as well."""

    def signal(self, theta):
        return super().signal(theta) + 1e-3 * theta[:, 1:2]


@dataclass(frozen=True)
class NoProjection(LinearGaussian):
    extrinsic: tuple[str, ...] = ("t1",)


# --- what a simulator says of itself


def test_the_signal_has_the_shape_of_x_unless_the_simulator_says_otherwise():
    assert signal_shape(PLAIN) == (3,) and signal_shape(WAVE) == (2,) and signal_shape(BY_ROWS) == (1,)
    assert signal_shape(replace(WAVE, signal_shape=())) == ()
    assert shape_difference((2,), WAVE) == [] and shape_difference((3,), PLAIN) == []
    assert shape_difference((4,), WAVE) == ["signal_shape: expected (2,), got (4,)"]
    assert shape_difference((4,), PLAIN) == ["x_shape: expected (3,), got (4,)"]


def test_extrinsic_columns_are_those_of_the_prior_in_its_order():
    assert extrinsic_columns(WAVE) == (1, 2)
    assert extrinsic_columns(replace(WAVE, extrinsic=("phi", "a"))) == (1, 2)
    assert extrinsic_columns(replace(WAVE, extrinsic=["phi"])) == (2,)
    assert extrinsic_columns(replace(WAVE, extrinsic=())) == ()
    assert extrinsic_columns(PLAIN) == () and extrinsic_columns(BY_ROWS) == ()
    assert projects(WAVE) and not projects(PLAIN) and not projects(BY_ROWS)


class RowsWithExtrinsic:
    """A row simulator that takes part in what is for batched ones."""

    prior, x_shape, signal_shape, extrinsic = Prior(Uniform("u", 0, 1)), (1,), (7,), ("u",)

    def simulate_row(self, theta, rng):
        return theta

    def project(self, theta, signal):
        raise AssertionError("never called")

    def observe(self, signal, generator=None):
        return signal


def test_a_row_simulator_has_neither():
    rows = RowsWithExtrinsic()
    assert signal_shape(rows) == (1,) and not projects(rows)
    x = torch.ones(3, 1)
    assert observe(rows, x, x, None) is x and noiseless(rows, x, x) is x and theta_for(rows, x) is None
    with pytest.raises(
        ValueError, match="extrinsic: expected a simulator with signal and project, got one with"
    ):
        extrinsic_columns(rows)


@pytest.mark.parametrize(
    "simulator, message",
    [
        (replace(WAVE, extrinsic=("a", "psi", "iota")), "expected names among s, a, phi, got psi, iota"),
        (replace(WAVE, extrinsic="a"), "expected a tuple of names, got 'a'"),
        (replace(WAVE, extrinsic=None), "expected a tuple of names, got None"),
        (NoProjection(), r"expected a method project\(theta, signal\) to apply t1, got none"),
    ],
)
def test_extrinsic_parameters_that_cannot_be_are_refused_before_any_work(simulator, message, tmp_path):
    with pytest.raises(ValueError, match=f"extrinsic: {message}"):
        extrinsic_columns(simulator)
    with pytest.raises(ValueError, match=f"extrinsic: {message}"):
        simulate(simulator, 10, tmp_path / "s.h5", seed=1, progress=False)
    assert not (tmp_path / "s.h5").exists()


# --- from the signal to x


def test_without_a_projection_x_is_what_the_simulator_makes_of_the_signal():
    signal = torch.randn(5000, 3, generator=generator())
    expected = PLAIN.observe(signal, generator(1))
    assert observe(PLAIN, None, signal, generator(1)).equal(expected)
    assert noiseless(PLAIN, None, signal) is signal
    assert theta_for(PLAIN, signal) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 4096, 10_000])
def test_a_projection_is_applied_row_by_row_whatever_their_number(n, dtype):
    theta = thetas(n)
    signal = WAVE.signal(theta).to(dtype)
    whole = WAVE.noiseless(WAVE.project(theta, signal))
    assert noiseless(WAVE, theta, signal).equal(whole)
    assert observe(replace(WAVE, noise_sd=0.0), theta, signal, generator()).equal(whole)
    x = observe(WAVE, theta, signal, generator(2))
    assert x.shape == (n, 4) and x.dtype == dtype
    assert x.equal(observe(WAVE, theta, signal, generator(2)))
    if n > 4096:  # blocks have noise of their own
        assert stats.kstest(((x - whole) / WAVE.noise_sd).flatten().numpy(), "norm").pvalue > 1e-3
        assert not (x - whole)[:4096].equal((x - whole)[4096:8192])


def test_a_projection_needs_parameters():
    with pytest.raises(ValueError, match="theta: expected values for a simulator that projects, got None"):
        observe(WAVE, None, torch.zeros(2, 2), None)


def test_theta_for_a_projection_is_that_of_the_prior():
    z = torch.randn(100, 3, generator=generator())
    theta = theta_for(WAVE, z)
    assert theta.dtype == torch.float64 and theta.equal(WAVE.prior.constrain(z.double())[0])


# --- redrawing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_redrawn_columns_are_the_prior_and_the_others_stay(dtype):
    """Kolmogorov-Smirnov at 1e-3 each: four tests, false alarms of any seed in 0.4 %."""
    z, state = torch.randn(20_000, 3, generator=generator(), dtype=dtype), torch.get_rng_state()
    new = redraw_base(z, (1, 2), (False, False, True), generator(1))
    assert torch.get_rng_state().equal(state)
    assert new.dtype == dtype and new[:, 0].equal(z[:, 0])
    assert stats.kstest(new[:, 1].numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(new[:, 2].numpy(), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    edge = torch.tensor(math.pi, dtype=dtype)
    assert bool((new[:, 2] >= -edge).all()) and bool((new[:, 2] < edge).all())
    correlation = torch.corrcoef(torch.cat([new, z[:, 1:]], 1).double().T).fill_diagonal_(0.0)
    assert correlation.abs().max() < 4.5 / 20_000**0.5
    assert new.equal(redraw_base(z, (1, 2), torch.tensor([False, False, True]), generator(1)))
    assert not new.equal(redraw_base(z, (1, 2), (False, False, True), generator(2)))


def test_the_redrawn_parameters_follow_their_prior_in_physical_units():
    prior = Prior(Uniform("u", 2.0, 5.0), Sine("iota"))
    z = redraw_base(torch.zeros(20_000, 2), (0, 1), prior.periodic, generator(3))
    u, iota = prior.constrain(z.double())[0].T.numpy()
    assert stats.kstest(u, stats.uniform(2.0, 3.0).cdf).pvalue > 1e-3
    assert stats.kstest(iota, lambda t: 0.5 * (1 - np.cos(t))).pvalue > 1e-3


def test_redrawing_no_column_or_no_row_or_the_only_column():
    z = torch.randn(4, 2, generator=generator())
    assert redraw_base(z, (), (False, False), None) is z
    assert redraw_base(z[:0], (1,), (False, True), generator()).shape == (0, 2)
    assert redraw_base(z[:, :1], (0,), (True,), generator()).shape == (4, 1)


def test_parameters_that_act_on_the_signal_are_found_out():
    theta = thetas(4)
    check_extrinsic(PLAIN, theta[:, :2], PLAIN.signal(theta[:, :2]))
    check_extrinsic(WAVE, theta, WAVE.signal(theta).float())
    with pytest.raises(
        ValueError, match=r"extrinsic: expected signals that do not depend on a, phi, .* got a change"
    ):
        check_extrinsic(Dependent(), theta, Dependent().signal(theta))
    check_extrinsic(Dependent(extrinsic=("phi",)), theta, Dependent().signal(theta))  # a alone does act
    with pytest.raises(ValueError, match="as they are in the store"):
        check_extrinsic(WAVE, theta, 2 * WAVE.signal(theta))
    nan = WAVE.signal(theta).fill_(math.nan)
    with pytest.raises(ValueError, match="got a change by nan"):
        check_extrinsic(WAVE, theta, nan)


# --- stores, pairs, predictive data


def test_a_store_holds_signals_in_their_own_shape(tmp_path):
    store = quick_store(tmp_path / "s.h5", WAVE, 1100)
    assert store.x_shape == (2,)
    theta, signal = store.read(slice(None))
    np.testing.assert_allclose(signal, WAVE.signal(torch.from_numpy(theta)), rtol=1e-6)
    assert np.array_equal(quick_store(tmp_path / "s.h5", WAVE, 1200).signal()[:1100], signal)
    with pytest.raises(ValueError, match=r"signal_shape: expected \(3,\), got \(2,\)"):
        quick_store(tmp_path / "s.h5", replace(WAVE, signal_shape=(3,)), 1200)
    with pytest.raises(ValueError, match=r"signal: expected shape \(10, 3\), got \(10, 2\)"):
        quick_store(tmp_path / "t.h5", replace(WAVE, signal_shape=(3,)), 10)


@dataclass(frozen=True)
class FailsAbove(Wave):
    """No signal for s > 1.5, and an exception if there is one such row in a batch."""

    def signal(self, theta):
        if bool((theta[:, 0] > 1.5).any()):
            raise ArithmeticError("no solution")
        return super().signal(theta)


def test_rows_that_fail_have_the_shape_of_the_signal_too(tmp_path):
    with pytest.warns(UserWarning, match="no solution"):
        store = quick_store(tmp_path / "s.h5", FailsAbove(), 300)
    assert 10 < store.n_failed < 100 and Store.open(store.path).signal(valid=False).shape == (300, 2)
    with pytest.warns(UserWarning, match="no solution"):
        pairs = draw_pairs(FailsAbove(noise_sd=0.0), 300, seed=1)
    good = pairs.theta
    torch.testing.assert_close(pairs.x, WAVE.noiseless(WAVE.project(good, WAVE.signal(good))))


def test_pairs_are_observed_at_their_own_parameters():
    theta, x, _ = draw_pairs(replace(WAVE, noise_sd=0.0), 3000, seed=4)
    assert x.dtype == torch.float64
    torch.testing.assert_close(x, WAVE.noiseless(WAVE.project(theta, WAVE.signal(theta))), rtol=0, atol=0)
    assert stats.kstest(theta[:, 1].numpy(), stats.norm(-1, 2).cdf).pvalue > 1e-3


def test_the_exact_posterior_is_calibrated_and_a_shifted_phase_is_not():
    """The chance of a false alarm is `calibrate`'s own 1 %."""
    options = {"n": 400, "draws": 100, "seed": 3, "progress": False}
    assert calibrate(WavePosterior(WAVE), WAVE, **options).ranks.passed
    shifted = calibrate(WavePosterior(WAVE, shift=0.3), WAVE, **options).ranks
    assert not shifted.passed and any(test.name == "phi" and test.p_value < 1e-3 for test in shifted.tests)


def test_predictive_data_are_those_of_the_draws():
    theta = thetas(2000)
    data = replicate(theta, WAVE, seed=5)
    clean = WAVE.noiseless(WAVE.project(theta, WAVE.signal(theta)))
    assert data.shape == (2000, 4)
    assert stats.kstest(((data - clean) / WAVE.noise_sd).flatten().numpy(), "norm").pvalue > 1e-3
    draws, _ = WavePosterior(WAVE).sample_and_log_prob(data[:1], 2000, generator())
    assert predictive_check(draws[:, 0], None, WAVE, data[0], seed=6).inside
    assert not predictive_check(
        draws[:, 0], None, WAVE, data[0] + torch.tensor([0, 0, 4.0, 4.0]), seed=6
    ).inside
