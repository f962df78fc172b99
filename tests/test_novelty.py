"""Every statistical test here has a fixed seed and a false-alarm rate of 1e-4."""

import math

import pytest
import torch
from scipy.stats import binom, ks_2samp

from sbiflow.novelty import ALARM, Novelty

RATE = 1e-4


def generator(seed):
    return torch.Generator().manual_seed(seed)


def spectrum(n, seed, noise=0.1):
    """Twelve features that three parameters explain, curved, plus noise."""
    g = generator(seed)
    a, b, c = torch.rand(3, n, 1, generator=g, dtype=torch.float64)
    grid = torch.linspace(0, 1, 12, dtype=torch.float64)
    return a * torch.sin(3 * b * grid) + c + noise * torch.randn(n, 12, generator=g, dtype=torch.float64)


def heavy_tails(n, seed):
    g = generator(seed)
    return torch.randn(n, 2, 3, generator=g) / torch.rand(n, 1, 1, generator=g).sqrt()


def with_constants(n, seed):
    x = spectrum(n, seed).float()
    x[:, 0], x[:, 5] = 0.0, 10_000.1
    return x


def scalar(n, seed):
    return torch.rand(n, generator=generator(seed))


SIMULATORS = {f.__name__: f for f in (spectrum, heavy_tails, with_constants, scalar)}


@pytest.mark.parametrize("name", SIMULATORS)
def test_p_values_of_simulations_are_uniform(name):
    """The two-sample test compares them with the null distribution itself, which is a sample too."""
    simulate = SIMULATORS[name]
    novelty = Novelty.fit(simulate(3000, 1), simulate(5000, 2))
    fresh = simulate(5000, 3)
    assert ks_2samp(novelty.distance(fresh), novelty.null).pvalue > RATE
    p = novelty.p_value(fresh)
    assert ks_2samp(p, torch.arange(1, 5002) / 5001).pvalue > RATE
    assert float(p.min()) >= 1 / 5001 and float(p.max()) <= 1
    alarms = int((p <= novelty.alarm).sum())
    # the threshold is itself estimated from 5000 simulations: twice the mean covers that
    assert alarms <= binom.isf(RATE, 5000, 2 * ALARM)


def test_p_values_in_use_are_valid_with_more_features_than_simulations():
    x = torch.randn(1040, 200, generator=generator(1))
    novelty = Novelty.fit(x[:40], x[40:540])
    p = novelty.p_value(x[540:])
    assert ks_2samp(p, torch.arange(1, 502) / 501).pvalue > RATE


@pytest.mark.parametrize("name", ["spectrum", "heavy_tails", "with_constants"])
def test_a_shifted_observation_is_far_out(name):
    simulate = SIMULATORS[name]
    novelty = Novelty.fit(simulate(3000, 1), simulate(5000, 2))
    shift = 1000 if name == "heavy_tails" else 5
    assert (novelty.p_value(simulate(100, 3) + shift) <= 2 / 5001).all()


def test_a_feature_that_no_parameter_explains_stands_out_although_each_value_is_ordinary():
    novelty = Novelty.fit(spectrum(3000, 1), spectrum(5000, 2))
    x = spectrum(50, 3)
    zigzag = 0.4 * (-1.0) ** torch.arange(12)
    shaped = x + zigzag
    simulated = spectrum(5000, 2)
    assert ((shaped > simulated.amin(0)) & (shaped < simulated.amax(0))).float().mean() > 0.9
    assert (novelty.p_value(shaped) <= novelty.alarm).float().mean() > 0.95


@pytest.mark.parametrize("feature, value", [(0, 1e-3), (5, 10_001.0)])
def test_a_deviation_in_a_feature_that_never_varies_is_an_alarm(feature, value):
    novelty = Novelty.fit(with_constants(3000, 1), with_constants(5000, 2))
    x = with_constants(20, 3)
    assert (novelty.p_value(x) > novelty.alarm).sum() >= 19
    x[:, feature] = value
    assert (novelty.p_value(x) == 1 / 5001).all()


def test_rounding_of_a_feature_that_never_varies_is_no_alarm():
    """Stored in float32, observed in float64."""
    novelty = Novelty.fit(with_constants(3000, 1), with_constants(5000, 2))
    x = with_constants(20, 3)
    exact = x.double()
    exact[:, 5] = 10_000.1
    assert (exact[:, 5] != x[:, 5]).all()
    torch.testing.assert_close(novelty.p_value(exact), novelty.p_value(x), rtol=0, atol=1e-3)


def test_a_relation_between_features_that_always_holds_is_an_alarm_when_broken():
    x = spectrum(8000, 1)
    x = torch.cat([x, 2 * x[:, :1]], -1)
    novelty = Novelty.fit(x[:3000], x[3000:])
    assert float(novelty.p_value(x[:1])) > novelty.alarm
    x[0, -1] += 0.01
    assert float(novelty.p_value(x[:1])) == 1 / 5001


def test_directions_beyond_the_components_kept_still_count():
    novelty = Novelty.fit(spectrum(3000, 1), spectrum(5000, 2), max_components=4)
    assert novelty.sizes == (12, 4, 5000)
    assert ks_2samp(novelty.distance(spectrum(5000, 3)), novelty.null).pvalue > RATE
    x = spectrum(50, 4) + 0.4 * (-1.0) ** torch.arange(12)
    assert (novelty.p_value(x) <= novelty.alarm).float().mean() > 0.95


def test_the_alarm_can_go_off_with_few_simulations_too():
    """p cannot be smaller than 1 / (1 + number): with 200 of them that is above the usual threshold."""
    few = Novelty.fit(spectrum(300, 1), spectrum(200, 2))
    assert few.alarm == pytest.approx(1 / 201, rel=0.01)
    assert bool(few.p_value(spectrum(1, 3) + 10) <= few.alarm)
    assert Novelty.fit(spectrum(300, 1), spectrum(2000, 2)).alarm == ALARM


@pytest.mark.parametrize("size", [1e30, 1e300, 1.7e308])
def test_the_largest_numbers_are_far_out_and_not_nan(size):
    novelty = Novelty.fit(spectrum(300, 1), spectrum(2000, 2))
    x = size * (-1.0) ** torch.arange(12, dtype=torch.float64)[None]
    assert float(novelty.p_value(x)) == pytest.approx(1 / 2001)
    assert not math.isnan(float(novelty.distance(x)))


def test_units_do_not_matter():
    """Metres or nanometres, and any offset that double precision can carry."""
    x, scale = spectrum(4000, 1), 10.0 ** torch.arange(-9, 3)
    plain = Novelty.fit(x[:1000], x[1000:3000])
    other = Novelty.fit(x[:1000] * scale, x[1000:3000] * scale)
    torch.testing.assert_close(plain.distance(x), other.distance(x * scale), rtol=1e-6, atol=0)


def test_simulations_that_do_not_vary_at_all():
    novelty = Novelty.fit(torch.ones(30, 4), torch.ones(2000, 4))
    p = novelty.p_value(torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1.1]]))
    assert p.tolist() == pytest.approx([1, 1 / 2001])


def test_it_is_saved_by_its_state():
    novelty = Novelty.fit(spectrum(300, 1), spectrum(200, 2))
    copy = Novelty(*novelty.sizes)
    copy.load_state_dict(novelty.state_dict())
    x = spectrum(100, 3)
    assert copy.p_value(x).equal(novelty.p_value(x))
    assert novelty.p_value(x[:1]).shape == (1,)
