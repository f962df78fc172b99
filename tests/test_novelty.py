"""Every statistical test here has a fixed seed and a false-alarm rate of 1e-4."""

import math
import time

import pytest
import torch
from scipy.stats import binom, ks_2samp

from sbiflow.embedding import Embedding, EmbeddingConfig, principal_axes
from sbiflow.novelty import ALARM, EmbeddingNovelty, InputNovelty, Novelty, NoveltyCheck

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
    novelty = InputNovelty.fit(simulate(3000, 1), simulate(5000, 2))
    fresh = simulate(5000, 3)
    assert ks_2samp(novelty.distance(fresh), novelty.null).pvalue > RATE
    p = novelty.p_value(fresh)
    assert ks_2samp(p, torch.arange(1, 5002) / 5001).pvalue > RATE
    assert float(p.min()) >= 1 / 5001 and float(p.max()) <= 1
    alarms = int((p <= ALARM).sum())
    # the threshold is itself estimated from 5000 simulations: twice the mean covers that
    assert alarms <= binom.isf(RATE, 5000, 2 * ALARM)


def test_p_values_in_use_are_valid_with_more_features_than_simulations():
    x = torch.randn(1040, 200, generator=generator(1))
    novelty = InputNovelty.fit(x[:40], x[40:540])
    p = novelty.p_value(x[540:])
    assert ks_2samp(p, torch.arange(1, 502) / 501).pvalue > RATE


@pytest.mark.parametrize("name", ["spectrum", "heavy_tails", "with_constants"])
def test_a_shifted_observation_is_far_out(name):
    simulate = SIMULATORS[name]
    novelty = InputNovelty.fit(simulate(3000, 1), simulate(5000, 2))
    shift = 1000 if name == "heavy_tails" else 5
    assert (novelty.p_value(simulate(100, 3) + shift) <= 2 / 5001).all()


def test_a_feature_that_no_parameter_explains_stands_out_although_each_value_is_ordinary():
    novelty = InputNovelty.fit(spectrum(3000, 1), spectrum(5000, 2))
    x = spectrum(50, 3)
    zigzag = 0.4 * (-1.0) ** torch.arange(12)
    shaped = x + zigzag
    simulated = spectrum(5000, 2)
    assert ((shaped > simulated.amin(0)) & (shaped < simulated.amax(0))).float().mean() > 0.9
    assert (novelty.p_value(shaped) <= ALARM).float().mean() > 0.95


@pytest.mark.parametrize("feature, value", [(0, 1e-3), (5, 10_001.0)])
def test_a_deviation_in_a_feature_that_never_varies_is_an_alarm(feature, value):
    novelty = InputNovelty.fit(with_constants(3000, 1), with_constants(5000, 2))
    x = with_constants(20, 3)
    assert (novelty.p_value(x) > ALARM).sum() >= 19
    x[:, feature] = value
    assert (novelty.p_value(x) == 1 / 5001).all()


def test_rounding_of_a_feature_that_never_varies_is_no_alarm():
    """Stored in float32, observed in float64."""
    novelty = InputNovelty.fit(with_constants(3000, 1), with_constants(5000, 2))
    x = with_constants(20, 3)
    exact = x.double()
    exact[:, 5] = 10_000.1
    assert (exact[:, 5] != x[:, 5]).all()
    torch.testing.assert_close(novelty.p_value(exact), novelty.p_value(x), rtol=0, atol=1e-3)


def test_a_relation_between_features_that_always_holds_is_an_alarm_when_broken():
    x = spectrum(8000, 1)
    x = torch.cat([x, 2 * x[:, :1]], -1)
    novelty = InputNovelty.fit(x[:3000], x[3000:])
    assert float(novelty.p_value(x[:1])) > ALARM
    x[0, -1] += 0.01
    assert float(novelty.p_value(x[:1])) == 1 / 5001


def test_directions_beyond_the_components_kept_still_count():
    novelty = InputNovelty.fit(spectrum(3000, 1), spectrum(5000, 2), max_components=4)
    assert novelty.sizes == (12, 4, 5000)
    assert ks_2samp(novelty.distance(spectrum(5000, 3)), novelty.null).pvalue > RATE
    x = spectrum(50, 4) + 0.4 * (-1.0) ** torch.arange(12)
    assert (novelty.p_value(x) <= ALARM).float().mean() > 0.95


def test_the_alarm_can_go_off_with_few_simulations_too():
    """p cannot be smaller than 1 / (1 + number): with 200 of them that is above the usual threshold."""
    ordinary, far = torch.tensor([0.3]), torch.tensor([1 / 201])
    few = NoveltyCheck(far, ordinary, 200, 5000)
    assert few.levels == pytest.approx((1 / 201, ALARM / 2), rel=0.01)
    assert few.alarm.tolist() == [True]
    assert NoveltyCheck(ordinary, far, 200, 5000).alarm.tolist() == [False]
    assert few.p_value.tolist() == pytest.approx([2 / 201])
    assert "a false alarm for 1 in 182 ordinary ones" in few.warnings[0]
    tiny = NoveltyCheck(torch.tensor([1 / 11]), torch.tensor([1 / 2]), 10, 1)
    assert tiny.levels == (0, 0) and tiny.alarm.tolist() == [False] and not tiny.warnings
    assert NoveltyCheck(torch.tensor([0.7]), torch.tensor([0.9]), 200, 5000).p_value.tolist() == [1]


@pytest.mark.parametrize("size", [1e30, 1e300, 1.7e308])
def test_the_largest_numbers_are_far_out_and_not_nan(size):
    novelty = InputNovelty.fit(spectrum(300, 1), spectrum(2000, 2))
    x = size * (-1.0) ** torch.arange(12, dtype=torch.float64)[None]
    assert float(novelty.p_value(x)) == pytest.approx(1 / 2001)
    assert not math.isnan(float(novelty.distance(x)))


def test_units_do_not_matter():
    """Metres or nanometres, and any offset that double precision can carry."""
    x, scale = spectrum(4000, 1), 10.0 ** torch.arange(-9, 3)
    plain = InputNovelty.fit(x[:1000], x[1000:3000])
    other = InputNovelty.fit(x[:1000] * scale, x[1000:3000] * scale)
    torch.testing.assert_close(plain.distance(x), other.distance(x * scale), rtol=1e-6, atol=0)


def test_simulations_that_do_not_vary_at_all():
    novelty = InputNovelty.fit(torch.ones(30, 4), torch.ones(2000, 4))
    p = novelty.p_value(torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1.1]]))
    assert p.tolist() == pytest.approx([1, 1 / 2001])


def test_it_is_saved_by_its_state():
    novelty = InputNovelty.fit(spectrum(300, 1), spectrum(200, 2))
    copy = InputNovelty(*novelty.sizes)
    copy.load_state_dict(novelty.state_dict())
    x = spectrum(100, 3)
    assert copy.p_value(x).equal(novelty.p_value(x))
    assert novelty.p_value(x[:1]).shape == (1,)


# --- embedding space


def ring(n, seed, features=3):
    """A unit circle with noise, and features that hold noise only: its mean is where nothing ever is."""
    g = generator(seed)
    phi = 2 * math.pi * torch.rand(n, 1, generator=g, dtype=torch.float64)
    x = torch.cat([phi.cos(), phi.sin(), torch.zeros(n, features - 2)], -1)
    return x + 0.05 * torch.randn(x.shape, generator=g, dtype=x.dtype)


def counts(n, seed):
    """Almost every row has its equal among the simulations."""
    return torch.poisson(torch.full((n, 3), 2.0), generator=generator(seed))


def dead(n, seed):
    return torch.cat([ring(n, seed), torch.full((n, 1), 0.3)], -1)


EMBEDDINGS = {f.__name__: f for f in (ring, counts, dead, spectrum)}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_p_values_in_embedding_space_are_at_most_as_small_as_they_say(name):
    """Ties (equal rows) make them larger. Twice the rate covers that the null is a sample of 5000."""
    embedded = EMBEDDINGS[name]
    novelty = EmbeddingNovelty.fit(embedded(4000, 1), embedded(5000, 2))
    p = novelty.p_value(embedded(5000, 3))
    for alpha in (0.05, 0.01, 0.001):
        assert int((p <= alpha).sum()) <= binom.isf(RATE, 5000, alpha * (1 + 4 / (5000 * alpha) ** 0.5))
    if name == "ring":
        assert ks_2samp(p, torch.arange(1, 5002) / 5001).pvalue > RATE
    assert (novelty.p_value(embedded(20, 4) + 10) <= 1 / 5000).all()


def test_the_nearest_neighbour_sees_a_hole_that_a_linear_distance_does_not():
    middle = torch.zeros(1, 3)
    assert float(EmbeddingNovelty.fit(ring(4000, 1), ring(5000, 2)).p_value(middle)) < ALARM
    assert float(InputNovelty.fit(ring(4000, 1), ring(5000, 2)).p_value(middle)) > 0.5


def test_rounding_of_the_network_is_no_distance():
    """TF32 or another batch size move an embedding by some 1e-4 of its spread."""
    novelty = EmbeddingNovelty.fit(counts(4000, 1), counts(5000, 2))
    x = counts(100, 1)
    assert (novelty.p_value(x + 1e-4 * torch.randn(x.shape, generator=generator(5))) == 1).all()


def test_an_embedding_as_wide_as_x_keeps_the_reference_small():
    wide = torch.randn(300, 20_000, generator=generator(1))
    novelty = EmbeddingNovelty.fit(wide[:200], wide[200:])
    assert novelty.sizes == (52, 20_000, 100)
    assert float(novelty.p_value(wide[:1] * 3)) == 1 / 101


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e300])
def test_an_embedding_that_overflows_is_far_out(value):
    novelty = EmbeddingNovelty.fit(ring(400, 1), ring(200, 2))
    assert float(novelty.p_value(torch.full((1, 3), value, dtype=torch.float64))) == 1 / 201


# --- both


def embed(x):
    """Blind to all but two features."""
    return x[:, :2].float()


def test_both_spaces_have_their_say():
    novelty = Novelty.fit(ring(8000, 1, 6), ring(5000, 2, 6), embed)
    assert novelty.sizes == {"input": (6, 6, 9000), "embedding": (4000, 2, 5000)}
    x = ring(4, 3, 6)
    x[1, :2] = 0.0  # the hole
    x[2, 5] += 2.0  # what the embedding does not see
    found = novelty.check(x, embed(x))
    assert found.alarm.tolist() == [False, True, True, False]
    assert found.input[2] < 1e-3 < found.embedding[2] and found.embedding[1] < 1e-3 < found.input[1]
    assert str(found).startswith("2 of 4 observations unlike the simulations; index")
    assert "2 of 4 observations (index [1, 2]) unlike the simulations (p = " in found.warnings[0]
    assert found.observation(0).warnings == ()
    assert str(found.observation(3)).startswith("the observation looks like the simulations: p = 0.")
    copy = Novelty(**novelty.sizes)
    copy.load_state_dict(novelty.state_dict())
    assert copy.check(x, embed(x)).p_value.equal(found.p_value)


def test_false_alarms_of_both_together_are_no_more_frequent_than_stated():
    """Bonferroni: at most alpha; the rates of 20,000 fresh simulations over ten fits with their own null samples."""
    rates = []
    for seed in range(0, 100, 10):
        novelty = Novelty.fit(ring(4000, seed), ring(2000, seed + 1), embed)
        x = ring(2000, seed + 2)
        p = novelty.check(x, embed(x)).p_value
        rates.append([int((p <= alpha).sum()) for alpha in (0.05, 0.01)])
    for alpha, alarms in zip((0.05, 0.01), torch.tensor(rates).sum(0).tolist(), strict=True):
        spread = (20_000 * alpha * 2) ** 0.5  # binomial, twice: of the fresh and of the null simulations
        assert 0.5 * 20_000 * alpha < alarms < 20_000 * alpha + 3.8 * spread


# --- many features


def low_rank(n, p, seed, noise=0.3):
    """Five smooth signals in p features, and noise."""
    g = generator(seed)
    waves = torch.sin(torch.linspace(0, 9, p)[:, None] * torch.arange(1, 6)).T
    return torch.randn(n, 5, generator=g) @ waves + noise * torch.randn(n, p, generator=g)


def test_axes_of_a_large_matrix_are_those_of_its_svd():
    x = low_rank(1500, 1300, 1).double()
    x -= x.mean(0)
    exact, random = torch.linalg.svd(x, full_matrices=False)[2][:5].T, principal_axes(x, 5)
    torch.testing.assert_close(random.T @ random, torch.eye(5).double(), rtol=0, atol=1e-12)
    assert float(torch.linalg.svdvals(exact.T @ random).min()) > 1 - 1e-6  # the same subspace
    assert principal_axes(x, 5).equal(random)


def test_a_projection_of_many_features_finds_the_signals():
    embedding = Embedding(EmbeddingConfig("none", svd_components=5), (1300,))
    signal = low_rank(1500, 1300, 1, noise=0.0)
    embedding.fit(low_rank(1500, 1300, 1), signal)
    axes = torch.linalg.qr(embedding.project.weight.detach().double().T)[0]
    scaled = embedding.standardize(signal).double()
    scaled = scaled - scaled.mean(0)
    assert float((scaled - scaled @ axes @ axes.T).norm() / scaled.norm()) < 1e-5


@pytest.mark.parametrize("n, p", [(30, 200), (200, 30), (3, 1), (1, 3)])
def test_axes_of_a_small_matrix_are_exact(n, p):
    x = torch.randn(n, p, generator=generator(1), dtype=torch.float64)
    axes = principal_axes(x, 1000)
    assert axes.shape == (p, min(n, p))
    torch.testing.assert_close(axes.T @ axes, torch.eye(min(n, p)).double())
    torch.testing.assert_close(x @ axes @ axes.T, x)


def test_thousands_of_features_take_seconds():
    """A full SVD takes minutes; the p-values stay valid, and a shape that no parameter makes is seen."""
    start = time.process_time()
    novelty = InputNovelty.fit(low_rank(1500, 6000, 1), low_rank(400, 6000, 2), max_components=50)
    assert time.process_time() - start < 20
    fresh = low_rank(400, 6000, 3)
    assert ks_2samp(novelty.distance(fresh), novelty.null).pvalue > RATE
    assert (novelty.p_value(fresh + 0.2 * (-1.0) ** torch.arange(6000)) == 1 / 401).float().mean() > 0.95


def test_thousands_of_features_that_never_vary():
    novelty = InputNovelty.fit(torch.ones(1100, 1200), torch.ones(50, 1200))
    assert float(novelty.p_value(torch.ones(1, 1200))) == 1
    assert float(novelty.p_value(torch.ones(1, 1200) + (torch.arange(1200) == 7))) == 1 / 51
