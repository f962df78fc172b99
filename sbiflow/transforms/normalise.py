"""Normalisation of a flow's columns between its layers: activation norm and batch norm.

Both are y = (x - mean) / sd · exp(log_scale) + shift per column. Activation norm takes mean and sd once, from the data
that training starts with; batch norm takes those of every batch while training, and running averages otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nflows.transforms.base import Transform
from torch import Tensor, nn

_EPS = 1e-5  # added to a variance, as usual
_MOMENTUM = 0.1  # share of a batch in the running averages


def _checked(dim: int, columns: Sequence[int] | None, length: int = 1) -> list[int]:
    """The columns, all if there is no list, as runs of `length`."""
    chosen = list(range(dim)) if columns is None else list(columns)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(dim)):
        raise ValueError(f"columns: expected distinct columns of 0..{dim - 1}, got {chosen}")
    if length < 1 or len(chosen) % length:
        raise ValueError(f"length: expected a divisor of the {len(chosen)} columns, got {length}")
    return chosen


class ActNorm(Transform):
    """y = x exp(log_scale) + shift, learned, and started such that the outputs have mean 0 and sd 1.

    Kingma & Dhariwal 2018, arXiv 1807.03039, sec. 3.1. They start from the first batch that comes; here `initialise`
    is called once, with data that all processes share (`ConditionalFlow.fit`), so that processes never start apart and
    a flow that was loaded or resumed is not started anew: `initialised` is saved with the parameters.

    Args:
        dim: D.
        columns: those to normalise; the others pass. All by default.
        length: each `length` columns of the list are one channel of a signal, with one scale and shift.
    """

    columns: Tensor
    initialised: Tensor

    def __init__(self, dim: int, columns: Sequence[int] | None = None, length: int = 1) -> None:
        super().__init__()
        chosen = _checked(dim, columns, length)
        self.dim, self.length = dim, length
        self.log_scale = nn.Parameter(torch.zeros(len(chosen) // length))
        self.shift = nn.Parameter(torch.zeros(len(chosen) // length))
        self.register_buffer("columns", torch.as_tensor(chosen, dtype=torch.long), persistent=False)
        self.register_buffer("initialised", torch.tensor(False))

    @torch.no_grad()
    def initialise(self, inputs: Tensor, context: Tensor | None = None) -> None:
        """Take scale and shift from data (..., D); nothing the second time.

        Raises:
            ValueError: fewer than two rows, values that are not finite, or columns that do not vary.
        """
        if bool(self.initialised):
            return
        if inputs.shape[:-1].numel() < 2:
            raise ValueError(f"actnorm: expected at least 2 rows to start from, got {tuple(inputs.shape)}")
        part = inputs.index_select(-1, self.columns).unflatten(-1, (-1, self.length))
        values = part.movedim(-2, 0).flatten(1)
        sd, mean = torch.std_mean(values, 1, correction=0)
        least = 4 * torch.finfo(values.dtype).eps * mean.abs()  # what rounding makes of a constant
        if bad := (~(sd > least) | ~torch.isfinite(sd)).nonzero().flatten().tolist():
            raise ValueError(
                f"actnorm: expected finite values that vary, got sd {sd[bad].tolist()} in channels {bad}"
            )
        self.log_scale.copy_(-sd.log())
        self.shift.copy_(-mean / sd)
        self.initialised.fill_(True)

    def _of_columns(self, values: Tensor) -> Tensor:
        """One value per channel -> one per column, zero where a column passes."""
        each = values.repeat_interleave(self.length)
        return values.new_zeros(self.dim).index_copy(0, self.columns, each)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = self._of_columns(self.log_scale)
        outputs = inputs * torch.exp(log_scale) + self._of_columns(self.shift)
        return outputs, log_scale.sum().expand(inputs.shape[:-1])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = self._of_columns(self.log_scale)
        outputs = (inputs - self._of_columns(self.shift)) * torch.exp(-log_scale)
        return outputs, -log_scale.sum().expand(inputs.shape[:-1])


class BatchNorm(Transform):
    """y = (x - mean) / sqrt(var + 1e-5) · exp(log_scale) + shift (Dinh et al. 2017, arXiv 1605.08803, sec. 3.7).

    In training mode mean and variance are those of the rows at hand, gradients flow through them, and the log-det takes
    them as given, as the paper does: the map of one row then depends on the others, and its density is none. In
    evaluation they are running averages, and the map is affine with the exact log-det. `inverse` always takes the
    running averages, for the rows that led to its inputs are not known.

    Statistics of one batch in parts (lanes, processes) would differ from part to part: training refuses that.

    Args:
        dim: D.
        columns: those to normalise; the others pass. All by default.
    """

    columns: Tensor
    mean: Tensor
    variance: Tensor
    initialised: Tensor
    is_random = True  # for training mode is on only for a flow that says so
    mixes_rows = True

    def __init__(self, dim: int, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        chosen = _checked(dim, columns)
        self.log_scale = nn.Parameter(torch.zeros(len(chosen)))
        self.shift = nn.Parameter(torch.zeros(len(chosen)))
        self.register_buffer("columns", torch.as_tensor(chosen, dtype=torch.long), persistent=False)
        self.register_buffer("mean", torch.zeros(len(chosen)))
        self.register_buffer("variance", torch.ones(len(chosen)))
        self.register_buffer("initialised", torch.tensor(False))

    @torch.no_grad()
    def initialise(self, inputs: Tensor, context: Tensor | None = None) -> None:
        """Start the running averages from data (..., D); nothing the second time."""
        if bool(self.initialised):
            return
        mean, variance = self._statistics(inputs.index_select(-1, self.columns))
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.initialised.fill_(True)

    def _statistics(self, part: Tensor) -> tuple[Tensor, Tensor]:
        rows = part.flatten(0, -2) if part.ndim > 1 else part[None]
        if len(rows) < 2:
            raise ValueError(f"batchnorm: expected at least 2 rows while training, got {len(rows)}")
        variance, mean = torch.var_mean(rows, 0, correction=0)
        return mean, variance

    def _at_hand(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance to use, and in training mode a step of the running averages."""
        if not self.training:
            return self.mean, self.variance
        mean, variance = self._statistics(part)
        self.mean.lerp_(mean.detach(), _MOMENTUM)
        self.variance.lerp_(variance.detach(), _MOMENTUM)
        return mean, variance

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        part = inputs.index_select(-1, self.columns)
        mean, variance = self._at_hand(part)
        log_scale = self.log_scale - 0.5 * torch.log(variance + _EPS)
        part = (part - mean) * torch.exp(log_scale) + self.shift
        return inputs.index_copy(-1, self.columns, part), log_scale.sum().expand(inputs.shape[:-1])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = self.log_scale - 0.5 * torch.log(self.variance + _EPS)
        part = inputs.index_select(-1, self.columns)
        part = (part - self.shift) * torch.exp(-log_scale) + self.mean
        return inputs.index_copy(-1, self.columns, part), -log_scale.sum().expand(inputs.shape[:-1])
