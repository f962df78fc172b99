"""Counts as continuous numbers: n becomes n + u with u in the unit interval.

A flow has no density for a whole number, and on a table of them it would put spikes without limit. For any q(u | n)

    log P(n) = log ∫ p(n + u) du >= E_q [log p(n + u) - log q(u | n)],

so that training on n + u maximises a bound on the probability of the counts (Theis, van den Oord & Bethge 2016,
arXiv 1511.01844, eq. 3). With q uniform it is Uria, Murray & Larochelle's (2013, arXiv 1306.0186): the flow has to
learn a density that is flat within every cell. With q a flow trained along (variational dequantisation, Ho et al.
2019, arXiv 1902.00275, section 3.1), it may be any smooth density with the right mass in each cell: the gap of the
bound is KL(q(u | n) || p(u | n)).

K draws of u at once, log (1/K) Σ p(n + u_k) / q(u_k | n), are a bound that is tighter on average the larger K is and
tends to log P (Burda, Grosse & Salakhutdinov 2016, arXiv 1509.00519). With one q(u | n) for all count columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from sbiflow.embedding import Standardize
from sbiflow.families import FlowConfig, build_transform
from sbiflow.flows import ConditionalFlow
from sbiflow.priors import Prior
from sbiflow.structure import Structure
from sbiflow.transforms.bounded import normal_tails
from sbiflow.transforms.networks import phase_features

KINDS = ("uniform", "variational")
_EDGE = 1e-6  # of a cell: u never rounds into the next one
_LAYERS = 2
_FARTHEST = 10.0  # of a base coordinate, as the network reads it


class Noise(nn.Module):
    """q(u | row): u (..., K) in the unit cube; uniform before training.

    A flow in its generating direction, so that a draw and its density are one pass: u = Phi(f(e; row)), e normal.
    """

    def __init__(self, config: FlowConfig, count: int, context: int) -> None:
        super().__init__()
        own = replace(
            config,
            family="spline_autoregressive",
            layers=_LAYERS,
            start="prior",
            structure=Structure(),
            dropout=0.0,
        )
        self.count = count
        self.transform = build_transform(own, (False,) * count, context)

    def forward(self, context: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Contexts (n, C) -> u (n, K) and log q(u), (n,), float64."""
        shape = (len(context), self.count)
        e = torch.randn(shape, generator=generator, device=context.device, dtype=context.dtype)
        y, logdet = self.transform(e, context)
        e, y = e.double(), y.double()
        # log N(e) - log|dy/de| - log|du/dy|; the normalisations of both normals cancel
        log_q = 0.5 * (y.square() - e.square()).sum(-1) - logdet.double()
        return normal_tails(y)[0].clamp(_EDGE, 1 - _EDGE), log_q


class Dequantiser(nn.Module):
    """Draws u for the count columns of rows, and moves the rows by it.

    Rows are given by z (n, D), the base coordinates of the middles of their cells n + 1/2.

    Args:
        prior: the D marginals; those of counts are of n + u.
        columns: which of the D are counts.
        given: G, the number of columns that the density is conditional on.
        kind: "uniform" or "variational".
        config: of the flow; the noise has a flow of the same size.
    """

    def __init__(
        self, prior: Prior, columns: Sequence[int], given: int, kind: str, config: FlowConfig
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"dequantise: expected one of {', '.join(KINDS)}, got {kind!r}")
        self.prior, self.columns, self.kind = prior, list(columns), kind
        self.phases = torch.as_tensor(
            [i for i, flag in enumerate(prior.periodic.tolist()) if flag], dtype=torch.long
        )
        self.standardize = Standardize((given,))
        read = prior.dim + len(self.phases) + given
        self.noise = Noise(config, len(self.columns), read) if kind == "variational" else None

    def fit(self, x: Tensor) -> None:
        """Fit how the noise reads the given columns x (n, G)."""
        self.standardize.fit(x)

    def forward(self, z: Tensor, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """z (n, D) of the middles, x (n, G) -> z of n + u, and what is to be added to its log-density, (n,).

        That is -log q(u | row) and the log-Jacobian of the count columns at n + u less that at n + 1/2: the sum is a
        one-draw bound on the log-probability in the units of a density at z.
        """
        u, log_q = self._draw(z, x, generator)
        parts, total = list(z.unbind(-1)), -log_q
        for k, i in enumerate(self.columns):
            marginal, middle = self.prior.marginals[i], parts[i].detach().double()
            n = torch.floor(marginal.from_base(middle))  # a middle in float32 is off by far less than 1/2
            moved = marginal.to_base(n + u[:, k])
            total = total + marginal.log_prob(n + u[:, k]) - marginal.base_log_prob(moved)
            total = total - marginal.log_prob(n + 0.5) + marginal.base_log_prob(marginal.to_base(n + 0.5))
            parts[i] = moved.to(z.dtype)
        return torch.stack(parts, -1), total.to(z.dtype)

    def _draw(self, z: Tensor, x: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        if self.noise is not None:
            read = phase_features(z.clamp(-_FARTHEST, _FARTHEST), self.phases.to(z.device))
            return self.noise(torch.cat([read, self.standardize(x).expand(len(z), -1)], -1), generator)
        shape = (len(z), len(self.columns))
        u = torch.rand(shape, generator=generator, device=z.device, dtype=torch.float64)
        return u.clamp(_EDGE, 1 - _EDGE), torch.zeros(len(z), dtype=torch.float64, device=z.device)


class Dequantised(nn.Module):
    """A flow behind a dequantiser, as the training loop sees it: its log-density is the one-draw bound."""

    is_random = True

    def __init__(self, flow: ConditionalFlow, dequantiser: Dequantiser) -> None:
        super().__init__()
        self.flow, self.dequantiser = flow, dequantiser
        self.climbs_log_prob = flow.climbs_log_prob

    @property
    def embedding(self) -> nn.Module:
        """The flow's."""
        return self.flow.embedding

    def fit(self, z: Tensor, x: Tensor, signal: Tensor) -> None:
        """Fit what is not trained by gradients."""
        self.dequantiser.fit(x)
        with torch.no_grad():
            moved, _ = self.dequantiser(z, x, torch.Generator().manual_seed(0))
        self.flow.fit(moved, x, signal)

    def objective(self, z: Tensor, x: Tensor) -> Tensor:
        """What training climbs, (n,)."""
        moved, weight = self.dequantiser(z, x)
        return self.flow.objective(moved, x) + weight

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """One-draw bound, (n,)."""
        moved, weight = self.dequantiser(z, x)
        return self.flow.log_prob(moved, x) + weight
