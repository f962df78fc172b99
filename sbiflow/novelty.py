"""Does an observation look like what the simulator produces? Two tests, attached to every posterior sample set.

Input space: the squared Mahalanobis distance of x from the simulated observations along their principal components,
plus what lies outside those components: a feature that never varies has none, so a deviation there counts as far.
Leading components hold what the parameters can do, trailing ones little but noise, so a feature that no parameter
explains stands out there. It sees every feature, but it is linear: it misses what bends along with the simulations.

Embedding space: the distance from the embedded observation to the nearest of some thousand embedded simulations,
in their standard deviations. It sees only what the network passes on to the flow, that is what the posterior depends
on, but it follows any shape: the hole in a ring, the gap between two modes. (Schmitt et al. 2021, arXiv 2112.08866,
compare whole samples there by their MMD; for one observation a distance serves.)

Neither null distribution is assumed: each is that of simulations which the distance was not fitted to, and for the
embedding those that the network was not trained on. Observation and held-out simulations are then exchangeable, so
p = (1 + number at least as far) / (1 + number) is valid for any simulator and network, down to 1 / (1 + number).
The two are combined after Bonferroni, p = min(1, 2 min(p_input, p_embedding)), which is at most conservative.

What they can miss. A misspecified model whose data are also likely under another parameter is not novel to any such
test: then the posterior is wrong and nothing here says so. Noise that is too small passes, because an observation
close to the centre is close to simulations; the posterior-predictive check sees that, and more. A small deviation
in one of many features is lost in the others' noise. And p is an average over the prior: where its parameters are
extreme the simulator's own data are rare, and alarm more often than that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sbiflow.embedding import principal_axes, thinned

ALARM = 1e-3  # combined p-value below which an observation is called unlike the simulations
_LARGEST_LEVEL = 0.02
_RELATIVE_ZERO = 1e-6  # float32 rounding: smaller spreads are none
_EMBEDDING_ZERO = 1e-3  # sd: what a network's output may vary by between batch sizes and devices (TF32)
_REFERENCES = 4000
_REFERENCE_NUMBERS = 2**20  # an embedding of x itself may be wide
_NULL_NUMBERS = 2**27  # the time of the null distribution: 8,000 rows of 16,000 features
_BLOCK_NUMBERS = 2**23


@dataclass(frozen=True, eq=False)
class NoveltyCheck:
    """How ordinary B observations are among simulated ones.

    Attributes:
        input, embedding: (B,) p-values, the share of held-out simulations at least as far out.
        n_input, n_embedding: numbers of those simulations; no p-value is below 1 / (1 + n).
    """

    input: Tensor
    embedding: Tensor
    n_input: int
    n_embedding: int

    def __len__(self) -> int:
        return len(self.input)

    @property
    def p_value(self) -> Tensor:
        """(B,) both together, after Bonferroni."""
        return (2 * torch.minimum(self.input, self.embedding)).clamp(max=1.0)

    @property
    def levels(self) -> tuple[float, float]:
        """p-values in either space that are alarms: half of `ALARM`, or farther than all of fewer simulations.

        0 with fewer than 50 simulations: those cannot tell one observation in fifty from an alarm.
        """
        return _level(self.n_input), _level(self.n_embedding)

    @property
    def alarm(self) -> Tensor:
        """(B,) bool; false alarms are at most as frequent as the sum of `levels`."""
        return (self.input <= self.levels[0]) | (self.embedding <= self.levels[1])

    def observation(self, i: int) -> NoveltyCheck:
        """That of observation i alone."""
        return NoveltyCheck(self.input[i : i + 1], self.embedding[i : i + 1], self.n_input, self.n_embedding)

    def __str__(self) -> str:
        least = int(self.p_value.argmin())
        numbers = (
            f"p = {float(self.input[least]):.2g} (input), {float(self.embedding[least]):.2g} (embedding)"
        )
        if len(self) == 1:
            return (
                f"the observation looks {'un' if bool(self.alarm[0]) else ''}like the simulations: {numbers}"
            )
        strange = int(self.alarm.sum())
        return f"{strange} of {len(self)} observations unlike the simulations; index {least}: {numbers}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence if any observation is an alarm, else none."""
        strange = self.alarm.nonzero().flatten().tolist()
        if not strange:
            return ()
        which = "the observation" if len(self) == 1 else f"{len(strange)} of {len(self)} observations"
        return (
            f"{which} (index {strange[:10]}) unlike the simulations (p = {float(self.input.min()):.1e} in input space, "
            f"{float(self.embedding.min()):.1e} in embedding space; a false alarm for 1 in "
            f"{1 / sum(self.levels):.0f} ordinary ones): the model may be misspecified there, and the network was not "
            "trained for such data",
        )


def _level(n: int) -> float:
    smallest = 1.001 / (1 + n)
    return max(ALARM / 2, smallest) if smallest < _LARGEST_LEVEL else 0.0


class _Distance(nn.Module, ABC):
    """A distance and its sorted values for held-out simulations; buffers are made by the constructor."""

    null: Tensor

    @abstractmethod
    def distance(self, x: Tensor) -> Tensor:
        """(B, …) -> (B,), float64, never NaN."""

    def p_value(self, x: Tensor) -> Tensor:
        """Share of held-out simulations at least as far out, (B, …) -> (B,)."""
        null = self.null.cpu()
        farther = len(null) - torch.searchsorted(null, self.distance(x))
        return (1 + farther).double() / (1 + len(null))

    def _register(self, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def _fill(self, held_out: Tensor, **values: Tensor) -> None:
        for name, value in values.items():
            getattr(self, name).copy_(value)
        self.null.copy_(self.distance(held_out).sort().values)


class InputNovelty(_Distance):
    """Mahalanobis distance in the principal components of x, and from their span."""

    mean: Tensor
    scale: Tensor
    basis: Tensor
    spread: Tensor
    rest: Tensor

    def __init__(self, size: int, components: int, held_out: int) -> None:
        super().__init__()
        self._register(
            mean=(size,), scale=(size,), basis=(size, components), spread=(components,), rest=(), null=(held_out,)
        )  # fmt: skip

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The arguments of the constructor."""
        return (*self.basis.shape, len(self.null))

    @classmethod
    def fit(cls, x: Tensor, held_out: Tensor, max_components: int = 256) -> InputNovelty:
        """From simulated observations x (n, *x_shape) and others (m, *x_shape) for the null distribution.

        Of more numbers than fit into half a gigabyte, evenly spaced rows are taken.
        """
        x = _flat(thinned(x))
        if not x.shape[1]:
            return cls(0, 0, len(held_out))  # an empty x, of an unconditional flow: no distance, and p = 1
        mean, scale = x.mean(0), x.std(0)
        constant = scale <= _RELATIVE_ZERO * mean.abs()
        unit = torch.where(mean == 0, torch.ones_like(mean), mean.abs())
        scale = torch.where(constant, unit, scale)
        x = (x - mean).div_(scale)
        axes = principal_axes(x, max_components)
        spread, order = ((x @ axes).square().sum(0) / (len(x) - 1)).sqrt().sort(descending=True)
        smallest = _RELATIVE_ZERO * spread[0].clamp(min=1.0)
        keep = int((spread > smallest).sum())
        basis = axes[:, order[:keep]]
        # spread per direction outside the components kept: their own mean, or rounding where there is none
        outside = (x.square().sum() / (len(x) - 1) - spread[:keep].square().sum()).clamp(min=0.0)
        rest = (outside / max(x.shape[1] - keep, 1)).sqrt().clamp(min=smallest)
        novelty = cls(x.shape[1], keep, len(held_out))
        novelty._fill(held_out, mean=mean, scale=scale, basis=basis, spread=spread[:keep], rest=rest)
        return novelty

    def distance(self, x: Tensor) -> Tensor:
        """Squared distance, (B, *x_shape) -> (B,)."""
        return torch.cat([self._block(_flat(rows)) for rows in _blocks(x)])

    def _block(self, x: Tensor) -> Tensor:
        scaled, basis = (x - self.mean.cpu()) / self.scale.cpu(), self.basis.cpu()
        scores = scaled @ basis
        outside = scaled - scores @ basis.T
        squares = (scores / self.spread.cpu()).square().sum(-1) + (outside / self.rest.cpu()).square().sum(-1)
        return squares.nan_to_num(nan=torch.inf, posinf=torch.inf)  # inf - inf: as far as can be


class EmbeddingNovelty(_Distance):
    """Distance to the nearest of some embedded simulations, in standard deviations of each feature."""

    reference: Tensor
    scale: Tensor

    def __init__(self, references: int, features: int, held_out: int) -> None:
        super().__init__()
        self._register(reference=(references, features), scale=(features,), null=(held_out,))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The arguments of the constructor."""
        return (*self.reference.shape, len(self.null))

    @classmethod
    def fit(cls, embedded: Tensor, held_out: Tensor) -> EmbeddingNovelty:
        """From embedded simulations (n, C) and, for the null distribution, others (m, C) unknown to the network."""
        embedded, held_out = _flat(embedded), _flat(held_out)
        if not embedded.shape[1]:
            return cls(0, 0, len(held_out))
        scale = embedded.std(0)
        still = scale <= _RELATIVE_ZERO * embedded.abs().amax(0).clamp(min=1.0)
        scale = torch.where(still, torch.ones_like(scale), scale)
        rows = min(_REFERENCES, max(_REFERENCE_NUMBERS // embedded.shape[1], 1))
        reference = embedded[:rows]
        novelty = cls(len(reference), len(scale), len(held_out))
        novelty._fill(held_out, reference=reference, scale=scale)
        return novelty

    def distance(self, x: Tensor) -> Tensor:
        """Of embedded observations (B, C) -> (B,); 0 for one that is the same but for rounding."""
        scale = self.scale.cpu()
        if not len(scale):
            return torch.zeros(len(x), dtype=torch.float64)
        reference = self.reference.cpu() / scale
        blocks = _flat(x).split(max(_BLOCK_NUMBERS // max(reference.shape), 1))
        nearest = torch.cat([torch.cdist(rows / scale, reference).amin(1) for rows in blocks])
        nearest = nearest.nan_to_num(nan=torch.inf, posinf=torch.inf) / len(scale) ** 0.5
        return nearest.where(nearest > _EMBEDDING_ZERO, torch.zeros(()))


class Novelty(nn.Module):
    """Both tests, fitted by `fit`. All buffers are saved with the model; it stays on the CPU."""

    def __init__(self, input: Any, embedding: Any) -> None:
        """The `sizes` of both."""
        super().__init__()
        self.input, self.embedding = InputNovelty(*input), EmbeddingNovelty(*embedding)

    @property
    def sizes(self) -> dict[str, tuple[int, int, int]]:
        """The arguments of the constructor."""
        return {"input": self.input.sizes, "embedding": self.embedding.sizes}

    @classmethod
    @torch.no_grad()
    def fit(cls, x: Tensor, held_out: Tensor, embed: Callable[[Tensor], Tensor]) -> Novelty:
        """From simulated observations.

        Args:
            x: (n, *x_shape), which the network may have been trained on; n >= 4.
            held_out: (m, *x_shape), unknown to the network: the null distribution, in input space together with
                every second row of x.
            embed: (B, *x_shape) on the device of x -> (B, C).
        """
        rows = max(_NULL_NUMBERS // max(x[0].numel(), 1), 1)
        first = InputNovelty.fit(x[::2], torch.cat([held_out[:rows], x[1::2][:rows]])[:rows])
        x = x[:: max(len(x) // _REFERENCES, 1)]
        embedded = [torch.cat([embed(part) for part in _blocks(one)]) for one in (x, held_out)]
        second = EmbeddingNovelty.fit(*embedded)
        novelty = cls(first.sizes, second.sizes)
        novelty.input, novelty.embedding = first, second
        return novelty

    def check(self, x: Tensor, embedded: Tensor) -> NoveltyCheck:
        """Observations (B, *x_shape) and their embeddings (B, C)."""
        return NoveltyCheck(
            self.input.p_value(x),
            self.embedding.p_value(embedded),
            len(self.input.null),
            len(self.embedding.null),
        )


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).double().cpu()


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(max(_BLOCK_NUMBERS // max(x[0].numel(), 1), 1))
