"""Classifier two-sample test: how well can a classifier tell two sets of draws apart?

Draws of the reference get label 0, the others label 1, and the statistic is the cross-validated accuracy of a
classifier: 1/2 if the distributions are equal, 1 if they do not overlap (Friedman 2003; Lopez-Paz & Oquab
2017, arXiv 1610.06545). The protocol "published" is that of the SBI benchmark (Lueckmann et al. 2021, arXiv
2101.04653), so that its numbers compare with published ones: both sets scaled by mean and standard deviation
of the reference, a ReLU network with two hidden layers of 10 D units, adam, shuffled 5-fold
cross-validation; 10,000 draws against 10,000 in the benchmark. Any other classifier is named in the result.

"fast" is gradient-boosted trees, in a twentieth to a hundredth of the time. Its accuracy is another number.
Measured with 10,000 draws, "fast" less "published": -0.001 to -0.005 in 2 dimensions (shift of 0.1 sd, mode
weights 0.5 made 0.7, correlation 0.8, width 1.3), +0.010 to +0.017 in 5, +0.037 in 10 (shift): the published
network is trained until it fits the noise of its training draws, and of the 0.563 that a shift of 0.1 sd in
each of 10 parameters allows it finds 0.516, the trees 0.553. With 2,000 draws in 2 dimensions: -0.01 to -0.02.

The p-value does not take all held-out draws for independent throws of a coin. They are not: two draws close to
each other in different folds are both right if their labels agree and both wrong if not, and the scatter of
the accuracy for equal distributions is about 1.2 times the binomial one (measured: 1.15 to 1.25). Each fold for
itself has an exact test, Fisher's, and the p-values are merged by a rule that holds for any dependence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from sbiflow.calibration.fold_networks import fit_folds
from sbiflow.checks import as_tensor, check_count, check_finite, check_shape
from sbiflow.optional import deferred
from sbiflow.seeding import check_seed, torch_generator

ensemble, model_selection = deferred("sklearn.ensemble"), deferred("sklearn.model_selection")

stats = deferred("scipy.stats")

Method = Literal["published", "fast"]
_LARGEST = 1e15  # squares of gradients stay finite in float32
Split = tuple[np.ndarray, np.ndarray]  # training rows, held-out rows


@dataclass(frozen=True)
class C2stResult:
    """Cross-validated accuracy of a classifier between two sets of draws.

    Attributes:
        accuracy: mean over the folds' held-out draws; 0.5: not to be told apart.
        accuracy_error: standard error of that mean from the scatter over the folds.
        fold_accuracies: one per fold.
        n, dim: draws in each set and parameters.
        method: protocol and classifier in words.
        n_unconverged: folds whose classifier was stopped by its limit of 10,000 epochs, or diverged.
        p_value: of equal distributions; valid whatever the dependence of the folds, hence conservative.
    """

    accuracy: float
    accuracy_error: float
    fold_accuracies: tuple[float, ...]
    n: int
    dim: int
    method: str
    n_unconverged: int
    p_value: float

    @property
    def folds(self) -> int:
        return len(self.fold_accuracies)

    @property
    def z_score(self) -> float:
        """(accuracy - 1/2) in standard deviations of a fair coin thrown 2 n times.

        A measure, not a test: for equal distributions its standard deviation is about 1.2, not 1, since every
        draw trains the classifiers of the other folds.
        """
        return (self.accuracy - 0.5) * 2 * math.sqrt(2 * self.n)

    def __str__(self) -> str:
        text = (
            f"C2ST {self.accuracy:.3f} ± {self.accuracy_error:.3f} (p = {self.p_value:.2g}; {self.method}; "
            f"{self.n} against {self.n} draws, {self.folds} folds)"
        )
        return text + (f"; {self.n_unconverged} folds NOT CONVERGED" if self.n_unconverged else "")


def c2st(
    reference: Any, samples: Any, *, seed: int, method: Method = "published", folds: int = 5
) -> C2stResult:
    """Classifier two-sample test of samples (n, D) against a reference (n, D).

    Args:
        reference: draws of the reference; their mean and standard deviation scale both sets.
        samples: as many draws of the distribution in question.
        seed: of folds, initial weights and batches.
        method: "published" or "fast".
        folds: of the cross-validation.

    Raises:
        ValueError: wrong shapes, sets of unequal size, NaN or inf, a parameter that is constant in the
            reference, fewer draws than folds.
    """
    features, labels = scaled_pair(reference, samples)
    n, dim = len(labels) // 2, features.shape[1]
    check_count(folds, "folds", 2)
    if n < folds:
        raise ValueError(f"reference: expected at least {folds} draws, one per fold, got {n}")
    if method not in ("published", "fast"):
        raise ValueError(f'method: expected "published" or "fast", got {method!r}')
    state = int(np.random.default_rng(check_seed(seed)).integers(2**32))
    splits = list(model_selection.KFold(folds, shuffle=True, random_state=state).split(features))
    classify = _published if method == "published" else _fast
    name, votes, unconverged = classify(features, labels, splits, state)
    held_out = [labels[test] for _, test in splits]
    scores = [float(np.mean(vote == truth)) for vote, truth in zip(votes, held_out, strict=True)]
    return C2stResult(
        accuracy=float(np.mean(scores)),
        accuracy_error=float(np.std(scores, ddof=1) / math.sqrt(folds)),
        fold_accuracies=tuple(scores),
        n=n,
        dim=dim,
        method=name,
        n_unconverged=unconverged,
        p_value=_merged([_fold_p_value(v, t) for v, t in zip(votes, held_out, strict=True)]),
    )


def _fold_p_value(votes: np.ndarray, truth: np.ndarray) -> float:
    """Probability of as many hits or more in one fold, by Fisher's exact test.

    Given the training folds and all draws, the held-out labels are in random order if the distributions are
    equal, so that the hits among the draws voted 1 are hypergeometric.
    """
    hits = int(((votes == 1) & (truth == 1)).sum())
    return float(stats.hypergeom.sf(hits - 1, len(truth), int(truth.sum()), int(votes.sum())))


def _merged(p_values: list[float]) -> float:
    """Valid however the p-values depend on each other: K / k times the k-th smallest of K (Rueger 1978)."""
    k = (len(p_values) + 1) // 2
    return min(1.0, len(p_values) / k * sorted(p_values)[k - 1])


def scaled_pair(reference: Any, samples: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both sets scaled by mean and sd of the reference, (2 n, D), and labels 0 and 1, (2 n,).

    Raises:
        ValueError: see `c2st`.
    """
    x, y = (as_tensor(v, name).detach().double().cpu() for v, name in
            ((reference, "reference"), (samples, "samples")))  # fmt: skip
    check_shape(x, "reference", ("n", "D"))
    check_shape(y, "samples", tuple(x.shape))
    check_finite(x, "reference")
    check_finite(y, "samples")
    sd = x.std(0)
    if not bool((sd > 0).all()):
        constant = [d for d in range(x.shape[1]) if not sd[d] > 0]
        raise ValueError(
            f"reference: expected every parameter to vary, got constant columns {constant}: "
            "scaled by their sd of 0 they have no accuracy; leave them out"
        )
    scaled = (torch.cat([x, y]) - x.mean(0)) / sd
    if not float(scaled.abs().max()) < _LARGEST:
        raise ValueError(
            f"samples: expected values within {_LARGEST:g} sd of the reference's mean, "
            f"got {float(scaled.abs().max()):g}"
        )
    return scaled.numpy(), np.repeat([0, 1], len(x))


def _published(
    features: np.ndarray, labels: np.ndarray, splits: list[Split], state: int
) -> tuple[str, list[np.ndarray], int]:
    """Name, votes for the held-out draws of each fold (0 or 1), and folds that did not converge."""
    x, y, width = torch.from_numpy(features), torch.from_numpy(labels), 10 * features.shape[1]
    generator = torch_generator(state)
    votes, unconverged = [np.empty(0, dtype=int)] * len(splits), 0
    for size in sorted({len(train) for train, _ in splits}):  # folds of one size are trained together
        some = [i for i, (train, _) in enumerate(splits) if len(train) == size]
        fit = fit_folds(x, y, [torch.from_numpy(splits[i][0]) for i in some], (width, width), generator)
        unconverged += int((~fit.converged).sum())
        for k, i in enumerate(some):
            votes[i] = (fit.logits(k, x[splits[i][1]]) > 0).long().numpy()
    return f"published: ReLU MLP {width} x {width}, adam", votes, unconverged


def _fast(
    features: np.ndarray, labels: np.ndarray, splits: list[Split], state: int
) -> tuple[str, list[np.ndarray], int]:
    """As `_published`, with trees."""
    votes = []
    for train, test in splits:
        trees = ensemble.HistGradientBoostingClassifier(early_stopping=True, random_state=state)
        votes.append(trees.fit(features[train], labels[train]).predict(features[test]))
    return "fast: gradient-boosted trees", votes, 0
