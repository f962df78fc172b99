"""Masked autoregressive transforms: y_i = f(x_i; parameters from x_<i and the context).

With `Affine` this is MAF (Papamakarios et al. 2017, arXiv 1705.07057), with `Spline` the autoregressive neural
spline flow (arXiv 1906.04032). The density takes one network pass; so does the inverse, because hidden units are
sorted by degree and each is computed once (`incremental`).
"""

from __future__ import annotations

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.elementwise import Elementwise, column_map
from sbiflow.transforms.incremental import Incremental, grid, parts
from sbiflow.transforms.incremental_gradient import DifferentiableSteps
from sbiflow.transforms.networks import MaskedNet, phase_features


class MaskedAutoregressive(Transform):
    """An elementwise map with an autoregressive conditioner, in the order of the columns.

    Args:
        dim: D.
        context: C, number of context features; 0 for none.
        elementwise: the map; built for D columns.
        periodic: columns that are phases, read as cosine and sine by the conditioner.
        dropout: of the conditioner's units while training.
    """

    phase_columns: Tensor
    layout: Tensor

    def __init__(
        self,
        dim: int,
        context: int,
        elementwise: Elementwise,
        hidden: int,
        blocks: int,
        periodic: tuple[int, ...] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.elementwise = elementwise
        widths = [2 if i in periodic else 1 for i in range(dim)]
        self.net = MaskedNet(widths, elementwise.size, context, hidden, blocks, dropout)
        self.periodic = periodic
        self.register_buffer("phase_columns", torch.as_tensor(periodic, dtype=torch.long), persistent=False)
        layout = []  # phase_features appends the sines; the masks want each beside its cosine
        for i in range(dim):
            layout += [i, dim + periodic.index(i)] if i in periodic else [i]
        self.register_buffer("layout", torch.as_tensor(layout, dtype=torch.long), persistent=False)

    def _features(self, inputs: Tensor) -> Tensor:
        if not self.periodic:
            return inputs
        return phase_features(inputs, self.phase_columns).index_select(-1, self.layout)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, logdet = self.elementwise(inputs, self.net(self._features(inputs), context))
        return outputs, logdet.sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return self._inverse_with_gradient(inputs, context)
        context = None if self.net.context is None else context
        lead = torch.broadcast_shapes(inputs.shape[:-1], () if context is None else context.shape[:-1])
        draws, contexts = grid(lead, context)
        dim = inputs.shape[-1]
        shape = (draws, 1 if contexts is None else len(contexts), dim)
        columns = inputs.expand(*lead, dim).reshape(shape).movedim(-1, 0).contiguous()
        outputs, logdet = torch.empty_like(columns), columns.new_empty(shape[:-1])
        for steps in parts(self.net, draws, contexts, columns):
            part = (slice(None), *steps.part)
            value, own = self._column_by_column(steps, columns[part].flatten(1))
            outputs[part], logdet[steps.part] = value.unflatten(1, steps.shape), own.view(steps.shape)
        return outputs.movedim(0, -1).reshape(*lead, dim), logdet.reshape(lead)

    def _column_by_column(
        self, steps: Incremental | DifferentiableSteps, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(D, ...) -> (D, ...), (...), for the leading shape of the steps; that of `Incremental` is (rows,)."""
        outputs, logdets = [], []
        features: list[Tensor] = []
        for d, column in enumerate(columns):
            params = steps.step(d, features)
            value, logdet = column_map(self.elementwise, d)(column, params, inverse=True)
            outputs.append(value)
            logdets.append(logdet)
            features = [torch.cos(value), torch.sin(value)] if d in self.periodic else [value]
        return torch.stack(outputs), torch.stack(logdets).sum(0)

    def _inverse_with_gradient(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same with nothing in place, so that autograd can follow; the memory is not bounded."""
        context = None if self.net.context is None else context
        lead = torch.broadcast_shapes(inputs.shape[:-1], () if context is None else context.shape[:-1])
        steps = DifferentiableSteps(self.net, context, lead)
        outputs, logdet = self._column_by_column(steps, inputs.expand(*lead, -1).movedim(-1, 0))
        return outputs.movedim(0, -1), logdet
