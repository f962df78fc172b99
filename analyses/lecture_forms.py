"""The lectures' examples that can be done by hand, as sbiflow's transforms and by their closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor

import sbiflow as sf
from analyses.common import Number, save_figure
from analyses.lecture_figures import planar_figure
from sbiflow.families import build_transform
from sbiflow.transforms.bounded import LowerBounded
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.diagonal import Diagonal
from sbiflow.transforms.planar import planar
from sbiflow.transforms.triangular import Triangular

EXACT = 1e-10  # agreement with a closed form, float64
GRID = 25  # lines of the planar example


def agreement(what: str, gap: Tensor | float, floor: float = EXACT) -> Number:
    """A line for the largest difference from a closed form."""
    worst = float(torch.as_tensor(gap).detach().abs().max())
    return Number(what, f"{worst:.1e}", f"<= {floor:.0e}", met=worst <= floor)


def normal_log_prob(u: Tensor) -> Tensor:
    return -0.5 * (u.square() + math.log(2 * math.pi)).sum(-1)


def affine_example() -> Number:
    """z = 0.5 x - 2.5 with z ~ N(0, 1): x ~ N(5, 2)."""
    flow = Diagonal(1).double()
    flow.load_state_dict({"params.exit": torch.tensor([-2.5, raw_scale(0.5)], dtype=torch.float64)})
    x = torch.linspace(-5, 15, 401, dtype=torch.float64)[:, None]
    z, logdet = flow(x)
    exact = torch.from_numpy(stats.norm(5, 2).logpdf(x[:, 0].numpy()))
    return agreement("z = 0.5 x - 2.5: log-density of x against N(5, 2)", normal_log_prob(z) + logdet - exact)


def raw_scale(scale: float, limit: float = 5.0) -> float:
    """The parameter that a soft-clamped log-scale, s = raw / (1 + |raw| / limit), takes for this scale."""
    log_scale = math.log(scale)
    return log_scale / (1 - abs(log_scale) / limit)


class LogOfFirst(LowerBounded):
    """z1 = ln x1, the other column as it is."""

    def __init__(self) -> None:
        super().__init__([0.0])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, logdet = super().forward(inputs[..., :1], context)
        return torch.cat([first, inputs[..., 1:]], -1), logdet

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, logdet = super().inverse(inputs[..., :1], context)
        return torch.cat([first, inputs[..., 1:]], -1), logdet


def plane_example(generator: torch.Generator) -> Number:
    """z1 = ln x1, z2 = x2 - 2 ln x1 with z ~ N(0, 1): x1 is log-normal, and x2 given x1 is N(2 ln x1, 1)."""
    shear = Triangular(2).double()
    shear.load_state_dict({**shear.state_dict(), "params.exit": torch.tensor([0.0, 0.0, 0.0, 0.0, -2.0])})
    flow = Composite([LogOfFirst(), shear])
    x = torch.rand(1000, 2, generator=generator, dtype=torch.float64) * 5 + 0.01
    z, logdet = flow(x)
    log_first = x[:, 0].log()
    by_hand = torch.stack([log_first, x[:, 1] - 2 * log_first], -1)
    density = stats.lognorm(1).logpdf(x[:, 0].numpy()) + stats.norm(2 * log_first.numpy(), 1).logpdf(
        x[:, 1].numpy()
    )
    gap = torch.cat([(z - by_hand).flatten(), normal_log_prob(z) + logdet - torch.from_numpy(density)])
    return agreement("z1 = ln x1, z2 = x2 - 2 ln x1: z, and log-density of x", gap)


def exponential_example() -> Number:
    """X ~ N(0, 1), z = e^x: log-normal."""
    z = torch.logspace(-3, 3, 400, dtype=torch.float64)[:, None]
    x, logdet = LowerBounded(0.0)(z)
    exact = torch.from_numpy(stats.lognorm(1).logpdf(z[:, 0].numpy()))
    return agreement("z = e^x: log-density against the log-normal", normal_log_prob(x) + logdet - exact)


def planar_example(folder: Path) -> list[Number]:
    """w = (5, 0), u = (1, 0), b = 0 pushes a grid away from z1 = 0, by tanh(5 z1); the Jacobian is 1 + 5 sech^2(5 z1)."""
    w, u, b = (torch.tensor(value, dtype=torch.float64) for value in ((5.0, 0.0), (1.0, 0.0), 0.0))
    axis = torch.linspace(-3, 3, GRID, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    pushed, logdet = planar(grid, w, u, b)
    by_hand = grid + torch.stack([torch.tanh(5 * grid[:, 0]), torch.zeros(len(grid))], -1)
    exact = torch.log1p(5 / torch.cosh(5 * grid[:, 0]).square())
    save_figure(planar_figure(grid, pushed, GRID), folder / "planar.png")
    away = (pushed - grid)[:, 0] * grid[:, 0].sign()
    gap = torch.cat([(pushed - by_hand).flatten(), logdet - exact])
    return [
        agreement("planar flow w = [5, 0], u = [1, 0]: points and log-determinants", gap),
        Number("points that it moves towards z1 = 0", f"{int((away < 0).sum())} of {len(grid)}", "0", met=not (away < 0).any()),
    ]  # fmt: skip


def jacobian_example(family: str, generator: torch.Generator, dim: int = 4, context: int = 2) -> Number:
    """log|det| of a flow of this family, with random parameters, against the Jacobian by autograd."""
    torch.manual_seed(1)
    flow = build_transform(sf.FlowConfig(family, layers=2, hidden=16, blocks=1), (False,) * dim, context)
    flow = flow.double().eval()
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    z, x = (torch.randn(20, size, generator=generator, dtype=torch.float64) for size in (dim, context))
    z.requires_grad_()
    outputs, logdet = flow(z, x)
    rows = [torch.autograd.grad(outputs[:, i].sum(), z, retain_graph=True)[0] for i in range(dim)]
    exact = torch.linalg.slogdet(torch.stack(rows, 1))[1]
    return agreement(f"{family}: log-determinant against autograd", logdet - exact, 1e-8)
