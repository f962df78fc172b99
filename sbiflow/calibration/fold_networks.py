"""The classifiers of all folds of a cross-validation, trained side by side in batched matrix products.

The algorithm is that of scikit-learn's MLPClassifier(solver="adam") with its defaults, for two classes: ReLU,
logistic output, log-loss + L2, uniform Glorot initial weights and biases, batches of 200 from a new shuffle
every epoch, adam at 1e-3, end after more than 10 epochs in a row without a training loss 1e-4 below the best.
The networks of the C2ST protocol are so small that a fit is all overhead: together the folds take a third
of scikit-learn's time. Numbers are float32, as in the SBI benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

BATCH, RATE, L2, TOLERANCE, PATIENCE = 200, 1e-3, 1e-4, 1e-4, 10
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_relu_backward = torch.ops.aten.threshold_backward


@dataclass(frozen=True)
class FoldFit:
    """Trained networks: parameters (folds, P), layer sizes, epochs (folds,), converged (folds,)."""

    params: Tensor
    sizes: tuple[int, ...]
    epochs: Tensor
    converged: Tensor

    def logits(self, fold: int, features: Tensor) -> Tensor:
        """Log-odds of label 1, (n, D) -> (n,)."""
        layers = _layers(self.params[fold : fold + 1], self.sizes)
        return _forward(layers, features[None].float())[1][0, :, 0]


def fit_folds(
    features: Tensor,
    labels: Tensor,
    rows: Sequence[Tensor],
    hidden: tuple[int, ...],
    generator: Generator,
    max_epochs: int = 10_000,
) -> FoldFit:
    """Train one network per fold.

    Args:
        features: (n, D).
        labels: 0 or 1, (n,).
        rows: the training rows of each fold, all of the same number.
        hidden: units of the hidden layers.
        generator: of initial weights and batches.
        max_epochs: a network that is stopped by it has not converged, nor has one with weights that are NaN.
    """
    x, y, sizes = features.float(), labels.float(), (features.shape[1], *hidden, 1)
    training = torch.stack([torch.as_tensor(r) for r in rows])
    state = _AdamState(_glorot(len(rows), sizes, generator), sizes)
    final, active = state.params.clone(), torch.arange(len(rows))
    best = torch.full((len(rows),), math.inf, dtype=torch.float64)
    idle, epochs = torch.zeros(len(rows), dtype=torch.long), torch.zeros(len(rows), dtype=torch.long)
    for _ in range(max_epochs):
        shuffle = torch.rand(len(active), training.shape[1], generator=generator).argsort(1)
        order = training[active].gather(1, shuffle)
        loss = state.epoch(x[order], y[order])
        better = loss <= best[active] - TOLERANCE  # False for NaN
        idle[active] = torch.where(better, 0, idle[active] + 1)
        best[active] = torch.fmin(best[active], loss)
        epochs[active] += 1
        ended = idle[active] > PATIENCE
        final[active] = state.params
        if bool(ended.any()):
            active = active[~ended]
            if not len(active):
                break
            state.keep(~ended)
    return FoldFit(final, sizes, epochs, (idle > PATIENCE) & final.isfinite().all(1))


def _glorot(folds: int, sizes: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform in ± sqrt(6 / (fan in + fan out)), biases too, laid out as `_layers` reads it: (folds, P)."""
    pairs = list(pairwise(sizes))
    bounds = [torch.full((a * b,), math.sqrt(6 / (a + b))) for a, b in pairs]
    bounds += [torch.full((b,), math.sqrt(6 / (a + b))) for a, b in pairs]
    bound = torch.cat(bounds)
    return bound * (2 * torch.rand(folds, len(bound), generator=generator) - 1)


def _n_weights(sizes: tuple[int, ...]) -> int:
    return sum(a * b for a, b in pairwise(sizes))


def _layers(flat: Tensor, sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Views of (folds, P): all weights (folds, in, out) first, then all biases (folds, 1, out)."""
    pairs, at, bias_at = list(pairwise(sizes)), 0, _n_weights(sizes)
    layers = []
    for a, b in pairs:
        weight, bias = flat[:, at : at + a * b].unflatten(1, (a, b)), flat[:, bias_at : bias_at + b]
        layers.append((weight, bias.unsqueeze(1)))
        at, bias_at = at + a * b, bias_at + b
    return layers


def _forward(layers: list[tuple[Tensor, Tensor]], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Inputs of every layer and the log-odds (folds, n, 1), x (folds, n, D)."""
    inputs = [x]
    for weight, bias in layers[:-1]:
        inputs.append(torch.baddbmm(bias, inputs[-1], weight).relu_())
    return inputs, torch.baddbmm(layers[-1][1], inputs[-1], layers[-1][0])


class _AdamState:
    """Parameters (folds, P) with their moments; gradients are written by hand into one buffer, because
    autograd's overhead exceeds the arithmetic of networks of this size."""

    def __init__(self, params: Tensor, sizes: tuple[int, ...]) -> None:
        self.sizes, self.step = sizes, 0
        self._hold(params, torch.zeros_like(params), torch.zeros_like(params))

    def _hold(self, params: Tensor, mean: Tensor, square: Tensor) -> None:
        self.params, self.mean, self.square = params, mean, square
        self.gradient, self.root = torch.zeros_like(params), torch.zeros_like(params)
        self.layers, self.slopes = _layers(params, self.sizes), _layers(self.gradient, self.sizes)
        self.weights = params[:, : _n_weights(self.sizes)]

    def keep(self, folds: Tensor) -> None:
        """Go on with these folds only; (folds,) bool."""
        self._hold(self.params[folds], self.mean[folds], self.square[folds])

    def epoch(self, x: Tensor, y: Tensor) -> Tensor:
        """One pass over x (folds, n, D), y (folds, n): the mean loss (folds,) seen on the way, float64."""
        total = torch.zeros(len(x), dtype=torch.float64)
        for start in range(0, x.shape[1], BATCH):
            total += self._batch(x[:, start : start + BATCH], y[:, start : start + BATCH])
        return total / x.shape[1]

    def _batch(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of adam; the summed loss of the batch (folds,)."""
        n = x.shape[1]
        inputs, logits = _forward(self.layers, x)
        loss = softplus(logits).sum((1, 2)) - torch.linalg.vecdot(y, logits[..., 0])
        loss = loss + 0.5 * L2 * self.weights.square().sum(1)
        delta = (logits.sigmoid_() - y.unsqueeze(-1)).mul_(1 / n)
        for i in reversed(range(len(self.layers))):
            weight_slope, bias_slope = self.slopes[i]
            torch.bmm(inputs[i].transpose(1, 2), delta, out=weight_slope)
            torch.sum(delta, 1, keepdim=True, out=bias_slope)
            if i:
                back = torch.bmm(delta, self.layers[i][0].transpose(1, 2))
                delta = _relu_backward(back, inputs[i], 0)
        self.gradient[:, : self.weights.shape[1]].add_(self.weights, alpha=L2 / n)
        self._adam()
        return loss

    def _adam(self) -> None:
        self.step += 1
        self.mean.lerp_(self.gradient, 1 - _BETA1)
        self.square.mul_(_BETA2).addcmul_(self.gradient, self.gradient, value=1 - _BETA2)
        rate = RATE * math.sqrt(1 - _BETA2**self.step) / (1 - _BETA1**self.step)
        torch.sqrt(self.square, out=self.root).add_(_EPS)
        self.params.addcdiv_(self.mean, self.root, value=-rate)
