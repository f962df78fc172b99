"""Flow matching: a flow as the solution of an ordinary differential equation whose velocity a network learns.

Lipman et al. 2023 (arXiv 2210.02747); for posteriors Dax et al. 2023 (arXiv 2305.17161). Base draws e and parameters
z are joined by the straight line x_t = (1 - t) e + t z, and the velocity whose flow carries the base to p(z | context)
is the mean of z - e over all lines through a point: it is learned by least squares, without solving anything. This
module writes the same lines in coordinates of unit variance, y = x_t / |(1 - t, t)|, and time as the angle
a = atan2(t, 1 - t):

    y = cos(a) e + sin(a) z,    dy/da = cos(a) z - sin(a) e,    a in [0, pi / 2].

The flow is that of the straight lines (the change of coordinates is the identity at both ends), and where z is
standard normal its velocity is zero: a network that starts at zero starts as the identity, and after a whitening what
it has to learn is the departure from a normal distribution. A phase goes the shorter way around its circle from a
uniform base, at constant speed (Chen & Lipman 2023, arXiv 2302.03660). The density follows from

    log |det dz/de| = integral of the divergence of the velocity along the path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbiflow.transforms.bounded import wrap
from sbiflow.transforms.ode import solve
from sbiflow.transforms.velocity import QUARTER, VelocityNet

# Times are drawn as 1 - w^_LATE with w uniform: more of them late, as Dax et al. do by another power law. An error of
# the velocity there changes the density most (by tan(a)³ in the bound of Song et al. 2021, arXiv 2101.09258). On 10,000
# pairs of SLCP, 800 steps: log-density -4.94 for exponent 1, that is uniform times (one run); -4.74 and -4.50 for 1.5,
# -4.33 and -4.27 for 2, -4.37 and -4.36 for 3 (seeds 1 and 2); -4.46 for 5 (one run). Seeds scatter by 0.1 to 0.2.
_LATE = 2.0
_BLOCK = {"cpu": 2**18}  # entries of a carried Jacobian: bounds the memory whatever the number of rows
_BLOCK_GPU = 2**27


def tolerance_of(dtype: torch.dtype) -> float:
    """Error of a step of the solver, relative to 1 + |state|."""
    return 1e-11 if dtype == torch.float64 else 1e-5


@dataclass(frozen=True)
class Work:
    """Evaluations of velocity and divergence in the last solution: for the mean row, and for the hardest."""

    mean: float
    most: int


class VectorField(Transform):
    """The flow of a learned velocity: forward from z to the base, inverse from the base to z; (..., D) both.

    It starts as the identity. Both ways take some dozens of evaluations of the network, `work` says how many; they
    invert each other to the tolerance of the solver, `tolerance_of`. A row that the solver cannot follow (a step size
    at rounding) is NaN.

    Args:
        dim: D.
        context: C, number of context features; 0 for none.
        hidden, blocks: width and residual blocks of the network.
        periodic: columns that are phases.
        dropout: of the network's units while training.
        draws: base draws and times per row in `objective`.
    """

    is_random = True  # the objective draws base points and times

    def __init__(
        self,
        dim: int,
        context: int,
        hidden: int,
        blocks: int,
        periodic: Sequence[int] = (),
        dropout: float = 0.0,
        draws: int = 4,
    ) -> None:
        super().__init__()
        self.velocity = VelocityNet(dim, context, hidden, blocks, periodic, dropout)
        self.draws, self.work = draws, Work(0.0, 0)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._carried(inputs, context, QUARTER, 0.0)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._carried(inputs, context, 0.0, QUARTER)

    def objective(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Minus the flow matching loss, half the squared error of the velocity at random points, (...).

        Its expectation is largest for the velocity that carries the base to the density of z; it is no log-density.
        """
        own, target = self.velocity, inputs.expand(self.draws, *inputs.shape)
        angle = QUARTER * (1 - _stratified(target[..., 0]) ** _LATE)
        cos, sin = torch.cos(angle)[..., None], torch.sin(angle)[..., None]
        base = torch.randn_like(target)
        point, speed = cos * base + sin * target, cos * target - sin * base
        if own.has_phases:
            base = math.pi * (2 * torch.rand_like(target) - 1)
            way = wrap(target - base)
            point = torch.where(own.is_phase, base + angle[..., None] / QUARTER * way, point)
            speed = torch.where(own.is_phase, way / QUARTER, speed)
        error = own(angle, point, context) - speed
        return -0.5 * error.square().sum(-1).mean(0)

    def _carried(
        self, inputs: Tensor, context: Tensor | None, begin: float, end: float
    ) -> tuple[Tensor, Tensor]:
        """The points at the angle `end` of those at `begin`, and the log-determinant."""
        own, dim = self.velocity, inputs.shape[-1]
        rows, contexts, lead = _flat(inputs, context if own.features else None)
        size = max(_BLOCK.get(inputs.device.type, _BLOCK_GPU) // (dim * own.net.exit.in_features), 1)
        ends, counts = [], []
        for start in range(0, max(len(rows), 1), size):
            part = slice(start, start + size)
            state = torch.cat([rows[part], rows.new_zeros(len(rows[part]), 1)], -1)
            slope = own.given(contexts[part] if contexts is not None and len(contexts) > 1 else contexts)
            found = solve(slope, state, begin, end, tolerance_of(inputs.dtype))
            ends.append(found.end)
            counts.append(found.evaluations)
        if len(rows):
            evaluations = torch.cat(counts)
            self.work = Work(float(evaluations.double().mean()), int(evaluations.max()))
        outputs, logdet = torch.cat(ends).reshape(*lead, dim + 1).split([dim, 1], -1)
        if own.has_phases:
            outputs = torch.where(own.is_phase, wrap(outputs), outputs)
        return outputs, logdet[..., 0]


def _flat(inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None, torch.Size]:
    """Inputs as (n, D), the context as (n, C) or, if it is one for all, (1, C), and the shape of the rows."""
    lead = inputs.shape[:-1]
    if context is not None:
        lead = torch.broadcast_shapes(lead, context.shape[:-1])
        one = context.numel() == context.shape[-1]
        context = (context if one else context.expand(*lead, -1)).reshape(-1, context.shape[-1])
    rows = inputs.expand(*lead, -1).reshape(lead.numel(), inputs.shape[-1])
    return rows, context, lead


def _stratified(like: Tensor) -> Tensor:
    """Uniform on [0, 1), each entry by itself, and all together evenly spread: a random start, a fixed spacing
    (Kingma et al. 2021, arXiv 2107.00630, app. I.1: a loss of less variance)."""
    places = torch.arange(like.numel(), dtype=like.dtype, device=like.device).view_as(like)
    start = torch.rand((), dtype=like.dtype, device=like.device)
    return (start + places / max(like.numel(), 1)) % 1
