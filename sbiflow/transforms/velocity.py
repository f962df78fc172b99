"""A velocity v(angle, point, context) and its divergence: a residual network whose Jacobian is carried along.

With h_0, u_b, h_b as in residual.py and s = SiLU, the derivatives by column i of the point are

    T_0 = W_in e_i,    T_b = T_{b-1} + W'_b s'(u_b) W_b s'(h_{b-1}) T_{b-1},    dv_i / dz_i = (W_out s'(h_B) T_B)_i,

so the exact divergence costs D products for each one of the value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sbiflow.transforms.networks import ResidualNet, phase_features

QUARTER = math.pi / 2
_HARMONICS = 4  # of the time, in the network's context
_FASTEST = 2.5  # of a phase: half a turn takes the whole time, so that the mean is at most 2


class VelocityNet(nn.Module):
    """Angles (...,), points (..., D), context (..., C) or None -> velocities (..., D).

    Args:
        dim, context, hidden, blocks, dropout: as in `ResidualNet`.
        periodic: columns that are phases: read as cosine and sine, and of a bounded velocity.
    """

    phases: Tensor
    is_phase: Tensor
    turns: Tensor
    shift: Tensor

    def __init__(
        self, dim: int, context: int, hidden: int, blocks: int, periodic: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.dim, self.features, self.has_phases = dim, context, bool(periodic)
        self.net = ResidualNet(dim + len(periodic), dim, context + 2 * _HARMONICS, hidden, blocks, dropout)
        turns = torch.arange(1, _HARMONICS + 1.0).repeat(2)  # the cosine is a sine, a quarter ahead
        for name, value in {
            "phases": torch.tensor(periodic, dtype=torch.long),
            "is_phase": torch.tensor([i in periodic for i in range(dim)]),
            "turns": turns,
            "shift": (torch.arange(2 * _HARMONICS) < _HARMONICS).float() * QUARTER,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, angle: Tensor, point: Tensor, context: Tensor | None) -> Tensor:
        condition = self.times(angle)
        if self.features and context is not None:
            condition = torch.cat([context.expand(*angle.shape, -1), condition], -1)
        features = phase_features(point, self.phases) if self.has_phases else point
        return self.bounded(self.net(features, condition))

    def times(self, angle: Tensor) -> Tensor:
        """Cosines and sines of multiples, (..., 2 _HARMONICS)."""
        return torch.sin(angle[..., None] * self.turns + self.shift)

    def bounded(self, velocity: Tensor) -> Tensor:
        """Phases within ±_FASTEST, smoothly: a solver of high order needs smooth slopes."""
        if not self.has_phases:
            return velocity
        return torch.where(self.is_phase, _FASTEST * torch.tanh(velocity / _FASTEST), velocity)

    def given(self, context: Tensor | None) -> WithDivergence:
        """For a context (n, C), one for each of n rows; (1, C), one for all; or None."""
        return WithDivergence(self, context if self.features else None)


class WithDivergence:
    """Times (m,), states (m, D + 1) and their rows (m,) -> velocity and divergence (m, D + 1).

    The last column of a state, the log-determinant so far, is not read. Without dropout.
    """

    def __init__(self, velocity: VelocityNet, context: Tensor | None) -> None:
        net = velocity.net
        if net.entry is None or net.context is None:
            raise ValueError(
                "velocity: expected a network that reads the point and the time, got none of them"
            )
        self.velocity, self.net, self.entry = velocity, net, net.entry.weight
        of_context, self.of_time = net.context.weight.split([velocity.features, len(velocity.turns)], 1)
        biases = torch.cat([net.entry.bias, *(layer.bias for layer in net.first)])
        # what the observation adds to the layers is the same at all times
        self.shift = biases[None] if context is None else linear(context, of_context, biases)

    def __call__(self, angle: Tensor, state: Tensor, rows: Tensor) -> Tensor:
        net, shift = self.net, self.shift
        if len(shift) > 1:
            shift = shift.index_select(0, rows)
        shift = torch.addmm(shift, self.velocity.times(angle), self.of_time.t())
        of_entry, *of_blocks = shift.chunk(len(net.first) + 1, -1)
        h, tangent = self._entry(state[:, :-1])
        h = h + of_entry
        for first, second, own in zip(net.first, net.second, of_blocks, strict=True):
            value, slope = _silu(h)
            u, of_u = linear(value, first.weight) + own, linear(slope[:, None] * tangent, first.weight)
            value, slope = _silu(u)
            h, tangent = h + second(value), tangent + linear(slope[:, None] * of_u, second.weight)
        value, slope = _silu(h)
        return self._exit(net.exit(value), ((tangent * net.exit.weight) @ slope[..., None])[..., 0])

    def _entry(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Features times the first matrix, (m, H), and the derivative by each column of the point, (m or 1, D, H)."""
        own, columns = self.velocity, self.entry.t()[None, : self.velocity.dim]
        if not own.has_phases:
            return linear(point, self.entry), columns
        of_sines = torch.zeros_like(columns).index_copy(1, own.phases, self.entry.t()[None, own.dim :])
        turned = torch.cos(point)[..., None] * of_sines - torch.sin(point)[..., None] * columns
        slopes = torch.where(own.is_phase[:, None], turned, columns)
        return linear(phase_features(point, own.phases), self.entry), slopes

    def _exit(self, velocity: Tensor, slopes: Tensor) -> Tensor:
        """(m, D + 1) of velocities before they are bounded and their derivatives dv_i / dz_i, (m, D)."""
        own, bounded = self.velocity, self.velocity.bounded(velocity)
        if own.has_phases:
            slopes = torch.where(own.is_phase, slopes * (1 - (bounded / _FASTEST).square()), slopes)
        return torch.cat([bounded, slopes.sum(-1, keepdim=True)], -1)


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """x sigmoid(x) and its derivative."""
    gate = torch.sigmoid(x)
    value = x * gate
    return value, torch.addcmul(gate, value, 1 - gate)
