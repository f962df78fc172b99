"""The residual perceptron of the conditioners as one differentiable function, with a hand-written backward pass.

For inputs x, context c and blocks b = 1..B, with s = SiLU:

    h_0 = W_in x + V_0 c + b_in,    u_b = W_b s(h_{b-1}) + V_b c + b_b,    h_b = h_{b-1} + W'_b s(u_b) + b'_b,
    y = W_out s(h_B) + b_out.

Autograd would make some twenty passes over (rows, hidden) arrays for each block; here an array is kept only where the
backward pass needs it, and the others are written again and again. An autoregressive weight matrix is a staircase:
half of it is zero. `Stairs` cuts it into strips, and each product runs over the part of a strip that is not zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

_STRIP = 64  # rows of a product at least: narrower ones run at less than the full speed of a core


@dataclass(frozen=True)
class Stairs:
    """Where a weight matrix (out, in) is not zero.

    Attributes:
        rows: (a, e, k): outputs a..e read the inputs before k only.
        columns: (a, e, s): inputs a..e are read by the outputs from s on only.
    """

    rows: tuple[tuple[int, int, int], ...]
    columns: tuple[tuple[int, int, int], ...]

    @classmethod
    def dense(cls, outputs: int, inputs: int) -> Stairs:
        """No zeros that are known."""
        return cls(((0, outputs, inputs),), ((0, inputs, 0),))

    @classmethod
    def of_mask(cls, mask: Tensor) -> Stairs:
        """Of a mask (out, in) of ones to the left of zeros, whose rows do not get shorter."""
        reads = mask.sum(1).long().tolist()
        outputs, inputs = mask.shape
        rows = tuple((a, e, reads[e - 1]) for a, e in _strips(outputs) if reads[e - 1])
        first = [next((i for i, k in enumerate(reads) if k > j), outputs) for j in range(inputs)]
        columns = tuple((a, e, first[a]) for a, e in _strips(inputs) if first[a] < outputs)
        return cls(rows, columns)

    def add_product(self, weight: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """out += x weightᵀ, for x (n, in) and out (n, out)."""
        if self._is_whole(weight):
            return out.addmm_(x, weight.t())
        for a, e, k in self.rows:
            out[:, a:e].addmm_(x[:, :k], weight[a:e, :k].t())
        return out

    def transposed_product(self, weight: Tensor, g: Tensor, out: Tensor) -> Tensor:
        """g weight, (n, in), in `out`."""
        if self._is_whole(weight):
            return torch.mm(g, weight, out=out)
        last = 0
        for a, e, s in self.columns:
            torch.mm(g[:, s:], weight[s:, a:e], out=out[:, a:e])
            last = e
        if last < out.shape[1]:
            out[:, last:] = 0
        return out

    def outer(self, g: Tensor, x: Tensor) -> Tensor:
        """gᵀ x, (out, in), where the weight is not zero."""
        outputs, inputs = g.shape[1], x.shape[1]
        if len(self.rows) == 1 and self.rows[0][1:] == (outputs, inputs):
            return thin_outer(g, x)
        out = g.new_zeros(outputs, inputs)
        for a, e, k in self.rows:
            torch.mm(g[:, a:e].t(), x[:, :k], out=out[a:e, :k])
        return out

    def _is_whole(self, weight: Tensor) -> bool:
        return len(self.rows) == 1 and self.rows[0] == (0, *weight.shape)


def _strips(size: int) -> list[tuple[int, int]]:
    count = max(size // _STRIP, 1)
    edges = [min(i * _STRIP, size) for i in range(count)] + [size]
    return list(itertools.pairwise(edges))


def thin_outer(g: Tensor, x: Tensor) -> Tensor:
    """gᵀ x, in the order that a BLAS is fast in when x has few columns: the longer side last."""
    return torch.mm(g.t(), x) if x.shape[1] >= g.shape[1] else torch.mm(x.t(), g).t()


@dataclass(frozen=True)
class Layout:
    """Number of residual blocks, and the stairs of entry, hidden and exit matrices."""

    blocks: int
    entry: Stairs
    hidden: Stairs
    exit: Stairs


def residual(layout: Layout, inputs: Tensor, context: Tensor | None, weights: Sequence[Tensor]) -> Tensor:
    """y (n, out) for inputs (n, in) and context (n, C), (1, C) or None; see the module.

    `weights`: W_in, b_in, W_out, b_out, then W, b, W', b' of each block, then V (hidden (B + 1), C) if there is a
    context. Masked entries have to be zero.
    """
    if not torch.is_grad_enabled():
        return _pass(layout, inputs, context, weights, None)
    return _Residual.apply(layout, inputs, context, *weights)


def by_operations(
    layout: Layout,
    inputs: Tensor,
    context: Tensor | None,
    weights: Sequence[Tensor],
    drop: Callable[[Tensor], Tensor] = lambda units: units,
) -> Tensor:
    """`residual` in single operations, for any shapes (..., in) and (..., C) that broadcast against each other.

    For a compiler, for second derivatives, and with `drop` on the inner units of each block and the last ones.
    """
    w_in, b_in, w_out, b_out = weights[:4]
    shifts: Sequence[Tensor | float] = [0.0] * (layout.blocks + 1)
    if context is not None:
        shifts = linear(context, weights[-1]).chunk(layout.blocks + 1, -1)
    h = linear(inputs, w_in, b_in) + shifts[0]
    for b in range(layout.blocks):
        w, bias, w2, bias2 = weights[4 + 4 * b : 8 + 4 * b]
        h = h + linear(drop(silu(linear(silu(h), w, bias) + shifts[b + 1])), w2, bias2)
    return linear(drop(silu(h)), w_out, b_out)


def _pass(
    layout: Layout,
    inputs: Tensor,
    context: Tensor | None,
    weights: Sequence[Tensor],
    saved: list[Tensor] | None,
) -> Tensor:
    """y; appends h_0, u_1, h_1, ... to `saved`, if that is wanted."""
    w_in, b_in, w_out, b_out = weights[:4]
    shifts = [None] * (layout.blocks + 1) if context is None else weights[-1].chunk(layout.blocks + 1)
    h = layout.entry.add_product(w_in, inputs, _shift(b_in, shifts[0], context, len(inputs)))
    units = torch.empty_like(h)
    for b in range(layout.blocks):
        w, bias, w2, bias2 = weights[4 + 4 * b : 8 + 4 * b]
        u = _shift(bias, shifts[b + 1], context, len(inputs))
        layout.hidden.add_product(w, _activate(h, units), u)
        if saved is not None:
            saved += [h, u]
        h = h.add_(bias2) if saved is None else h + bias2
        layout.hidden.add_product(w2, _activate(u, units), h)
    if saved is not None:
        saved.append(h)
    return layout.exit.add_product(w_out, _activate(h, units), _shift(b_out, None, None, len(inputs)))


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        inputs: Tensor,
        context: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        saved: list[Tensor] = []
        y = _pass(layout, inputs, context, weights, saved)
        ctx.layout, ctx.has_context = layout, context is not None
        given = (inputs,) if context is None else (inputs, context)
        ctx.save_for_backward(*given, *weights, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, grad)
        layout, kept = ctx.layout, list(ctx.saved_tensors)
        blocks, hidden = layout.blocks, layout.hidden
        inputs, c = kept.pop(0), kept.pop(0) if ctx.has_context else None
        count = 4 + 4 * blocks + ctx.has_context
        weights, saved = kept[:count], kept[count:]
        into = Projection.of(weights[-1], c, blocks, ctx.needs_input_grad[2])
        h = saved[-1]
        # four arrays serve all blocks: memory that is written for the first time is slow
        units, g, g_u, g_a = (torch.empty_like(h) for _ in range(4))
        of_exit = [layout.exit.outer(grad, _activate(h, units)), grad.sum(0)]
        layout.exit.transposed_product(weights[2], grad, g)
        _silu_backward(g, h)
        of_blocks: list[Tensor] = []
        for b in reversed(range(blocks)):
            (w, _, w2, _), (h, u) = weights[4 + 4 * b : 8 + 4 * b], saved[2 * b : 2 * b + 2]
            of_second = [hidden.outer(g, _activate(u, units)), g.sum(0)]
            _silu_backward(hidden.transposed_product(w2, g, g_u), u)
            of_first = [hidden.outer(g_u, _activate(h, units)), g_u.sum(0)]
            of_blocks[:0] = [*of_first, *of_second]
            into.add(g_u, b + 1)
            g += _silu_backward(hidden.transposed_product(w, g_u, g_a), h)
        into.add(g, 0)
        of_entry = [layout.entry.outer(g, inputs), g.sum(0)]
        g_inputs = None
        if ctx.needs_input_grad[1]:
            g_inputs = layout.entry.transposed_product(weights[0], g, torch.empty_like(inputs))
        return None, g_inputs, into.total, *of_entry, *of_exit, *of_blocks, *into.of_weight


def _differentiable_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """For second derivatives: the gradient of the single operations, by autograd."""
    given = list(ctx.saved_tensors[: 5 + 4 * ctx.layout.blocks + 2 * ctx.has_context])
    inputs, context = given[0], given[1] if ctx.has_context else None
    y = by_operations(ctx.layout, inputs, context, given[1 + ctx.has_context :])
    places = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
    arguments = [inputs, context, *given[1 + ctx.has_context :]]
    found = torch.autograd.grad(y, [arguments[i] for i in places], grad, create_graph=True)
    result: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for i, value in zip(places, found, strict=True):
        result[i + 1] = value
    return tuple(result)


@dataclass
class Projection:
    """Gradients of the context c (n, C) and of the matrices V that project it, as they come in; none without c."""

    weights: Sequence[Tensor]
    c: Tensor | None
    parts: list[Tensor]
    total: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, c: Tensor | None, blocks: int, of_context: bool) -> Projection:
        """`of_context`: whether its own gradient is wanted."""
        if c is None:
            return cls((), None, [], None)
        total = torch.zeros_like(c) if of_context else None
        return cls(weight.chunk(blocks + 1), c, [], total)

    def add(self, g: Tensor, index: int) -> None:
        """g (n, hidden) of the layer that the context enters as the `index`-th, the last one first."""
        if self.c is None:
            return
        own = g if len(self.c) == len(g) else g.sum(0, keepdim=True)
        self.parts.insert(0, thin_outer(own, self.c))
        if self.total is not None:
            self.total.addmm_(own, self.weights[index])

    @property
    def of_weight(self) -> tuple[Tensor, ...]:
        """Of V as one matrix."""
        return (torch.cat(self.parts),) if self.parts else ()


def _shift(bias: Tensor, weight: Tensor | None, c: Tensor | None, n: int) -> Tensor:
    """V c + bias as a new array (n, hidden)."""
    if weight is None or c is None:
        return bias.repeat(n, 1)
    if len(c) == n:
        return torch.addmm(bias, c, weight.t())
    return torch.addmv(bias, weight, c[0]).repeat(n, 1)


def _activate(x: Tensor, out: Tensor) -> Tensor:
    """SiLU of x, in `out`."""
    return torch.ops.aten.silu.out(x, out=out)


def _silu_backward(g: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward.grad_input(g, x, grad_input=g)
