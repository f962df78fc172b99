"""Classifier two-sample test: known accuracies, scikit-learn's own fit, the false-alarm rate, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPClassifier

from sbiflow.calibration.c2st import _merged, c2st, scaled_pair
from sbiflow.calibration.fold_networks import _AdamState, _layers, fit_folds
from sbiflow.seeding import torch_generator


def normals(n: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    both = np.random.default_rng(seed).standard_normal((2, n, dim))
    return both[0], both[1]


@pytest.mark.parametrize("method", ["published", "fast"])
@pytest.mark.parametrize("dim", [1, 2])
def test_shift_has_the_accuracy_of_the_best_classifier(method: str, dim: int) -> None:
    """Two normals 1 sd apart: Phi(1/2) = 0.691; 4 standard deviations of 4,000 throws below and above, and 0.02 for
    what a classifier loses."""
    reference, samples = normals(2000, dim, 1)
    samples[:, 0] += 1.0
    result = c2st(reference, samples, seed=1, method=method)
    best = stats.norm.cdf(0.5)
    noise = 4 * math.sqrt(best * (1 - best) / 4000)
    assert best - noise - 0.02 < result.accuracy < best + noise
    assert result.p_value < 1e-10
    assert result.z_score > 10
    assert result.method.startswith(method)
    assert method in str(result)
    assert (result.n, result.dim, result.folds, result.n_unconverged) == (2000, dim, 5, 0)


@pytest.mark.parametrize("method", ["published", "fast"])
def test_equal_and_disjoint_sets(method: str) -> None:
    """Units of any size; false alarm 1e-4 by the p-value, z beyond 6 with probability < 1e-5."""
    reference, samples = normals(1000, 2, 2)
    scale, offset = np.array([1e6, 1e-6]), np.array([1e8, 3.0])
    equal = c2st(reference * scale + offset, samples * scale + offset, seed=3, method=method)
    assert equal.p_value > 1e-4
    assert abs(equal.z_score) < 6
    disjoint = c2st(reference, samples + 30.0, seed=3, method=method)
    assert disjoint.accuracy >= 0.999
    assert disjoint.accuracy_error <= 0.001


@pytest.mark.parametrize("method", ["published", "fast"])
def test_wrong_mode_weights_and_missed_correlation_are_seen(method: str) -> None:
    """0.5/0.5 made 0.7/0.3: best accuracy 0.6. Correlation 0.8 with equal marginals: only a joint test sees it."""
    rng = np.random.default_rng(4)
    reference, samples = normals(2000, 2, 5)
    modes = [4.0 * (rng.random(2000) < weight) for weight in (0.5, 0.7)]
    weights = c2st(
        reference * 0.3 + modes[0][:, None], samples * 0.3 + modes[1][:, None], seed=6, method=method
    )
    assert 0.56 < weights.accuracy < 0.64
    assert weights.p_value < 1e-4
    tilted = np.stack([samples[:, 0], 0.8 * samples[:, 0] + 0.6 * samples[:, 1]], 1)
    correlated = c2st(reference, tilted, seed=6, method=method)
    assert 0.64 < correlated.accuracy < 0.72
    assert correlated.p_value < 1e-10


def test_p_value_keeps_its_level() -> None:
    """120 null repetitions: more than 15 below 0.05 have a probability of 3e-4 at the full level (the merging rule
    stays below it), one below 1e-4 one of 1e-2."""
    p = [c2st(*normals(50, 1, 100 + s), seed=s, method="fast").p_value for s in range(120)]
    assert np.sum(np.array(p) < 0.05) <= 15
    assert min(p) > 1e-4
    assert _merged([0.01, 0.02, 0.03, 0.5, 0.9]) == pytest.approx(0.05)
    assert _merged([0.9, 0.8, 0.95, 1.0, 1.0]) == 1.0


def sklearn_accuracy(features: np.ndarray, labels: np.ndarray, width: int, state: int) -> float:
    scores = []
    for train, test in KFold(5, shuffle=True, random_state=state).split(features):
        network = MLPClassifier((width, width), max_iter=10_000, random_state=state)
        scores.append(network.fit(features[train], labels[train]).score(features[test], labels[test]))
    return float(np.mean(scores))


def test_the_published_classifier_is_that_of_scikit_learn() -> None:
    """Means over 3 data sets. Same data and folds: the accuracies differ by initial weights and batches only, with
    an sd of about 0.006 each; the gate is 4 of the mean's."""
    ours, theirs = [], []
    for s in range(3):
        reference, samples = normals(700, 2, 20 + s)
        samples[:, 1] += 0.8 * samples[:, 0]
        ours.append(c2st(reference, samples, seed=s).accuracy)
        features, labels = scaled_pair(reference, samples)
        theirs.append(sklearn_accuracy(features.astype(np.float32), labels, 20, s))
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * 0.006 * math.sqrt(2 / 3)


def test_one_epoch_equals_scikit_learn_number_by_number() -> None:
    """From equal weights, one batch a step: three epochs of one batch of 50 rows, in which order does not matter."""
    reference, samples = normals(25, 3, 7)
    features, labels = scaled_pair(reference, samples + 0.5)
    with pytest.warns(ConvergenceWarning):
        theirs = MLPClassifier((4, 5), max_iter=3, random_state=0).fit(features, labels)
    with pytest.warns(ConvergenceWarning):
        start = MLPClassifier((4, 5), max_iter=1, learning_rate_init=1e-30, random_state=0).fit(
            features, labels
        )
    flat = [torch.tensor(w).flatten() for w in [*start.coefs_, *start.intercepts_]]
    state = _AdamState(torch.cat(flat).float().repeat(2, 1), (3, 4, 5, 1))
    x, y = torch.tensor(features).float().expand(2, -1, -1), torch.tensor(labels).float().expand(2, -1)
    losses = [state.epoch(x, y) for _ in range(3)]
    np.testing.assert_allclose([float(v[1]) for v in losses], theirs.loss_curve_, rtol=1e-5)
    for (weight, bias), coef, intercept in zip(
        _layers(state.params, state.sizes), theirs.coefs_, theirs.intercepts_, strict=True
    ):
        np.testing.assert_allclose(weight[0], coef, atol=1e-5)
        np.testing.assert_allclose(bias[1, 0], intercept, atol=1e-5)


def test_a_fold_stopped_by_its_limit_is_counted() -> None:
    reference, samples = normals(100, 2, 8)
    features, labels = (torch.from_numpy(v) for v in scaled_pair(reference, samples))
    fit = fit_folds(features, labels, [torch.arange(150)] * 2, (20, 20), torch_generator(1), max_epochs=3)
    assert fit.epochs.tolist() == [3, 3]
    assert not fit.converged.any()
    assert not torch.equal(fit.params[0], fit.params[1])


def test_same_seed_same_result_and_sizes_that_folds_do_not_divide() -> None:
    reference, samples = normals(153, 2, 9)
    first, second = (c2st(reference, samples, seed=4) for _ in range(2))
    assert first == second
    assert first != c2st(reference, samples, seed=5)
    assert first == c2st(torch.from_numpy(reference), torch.from_numpy(samples), seed=4)


def test_ties_and_discrete_draws() -> None:
    rng = np.random.default_rng(10)
    zero_one = c2st(rng.integers(0, 2, (500, 1)), rng.integers(0, 2, (500, 1)), seed=1, method="fast")
    assert zero_one.p_value > 1e-3
    biased = c2st(rng.integers(0, 2, (500, 1)), rng.random((500, 1)) < 0.9, seed=1, method="fast")
    assert biased.p_value < 1e-4


def test_bad_input_gets_one_clear_line() -> None:
    x, y = normals(50, 2, 11)
    constant, broken, far = x.copy(), y.copy(), y.copy()
    constant[:, 1], broken[3, 1], far[3, 0] = 2.0, math.nan, 1e300
    for reference, samples, options, message in [
        (x, y[:40], {}, r"samples: expected shape \(50, 2\)"),
        (x, y[:, :1], {}, "samples: expected shape"),
        (x[:, 0], y[:, 0], {}, "reference: expected shape"),
        (x, broken, {}, "samples: expected finite"),
        (constant, y, {}, r"constant columns \[1\]"),
        (x, far, {}, "samples: expected values within"),
        (x, y, {"folds": 1}, "folds"),
        (x[:4], y[:4], {}, "at least 5 draws"),
        (x, y, {"method": "mlp"}, "method"),
        (x, y, {"seed": -1}, "seed"),
    ]:
        with pytest.raises(ValueError, match=message):
            c2st(reference, samples, **{"seed": 1, **options})
