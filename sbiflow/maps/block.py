"""The posteriors of one block of pixels: draws, their statistics, and whether the answers may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from sbiflow.maps.file import PixelStatus
from sbiflow.maps.statistics import Predictive, summarise_draws
from sbiflow.seeding import torch_generator

if TYPE_CHECKING:
    from sbiflow.posterior import Posterior

_KEY = 0x3A95
_ROWS = {"cpu": 4096}  # draws per pass, what a core's cache holds; bounds the memory whatever n
_ROWS_GPU = 262_144
_PASSES = 4


@dataclass(frozen=True)
class Mixture:
    """Posteriors of one problem with their shares; one of share 1 is the usual case."""

    members: Sequence[Posterior]
    weights: Sequence[float]

    @property
    def heaviest(self) -> Posterior:
        """The member with the largest weight: it judges whether x is ordinary."""
        return self.members[max(range(len(self.members)), key=self.weights.__getitem__)]

    @torch.no_grad()
    def draw(self, x: Tensor, n: int, generator: Generator) -> Tensor:
        """x (B, *x_shape) -> z (n, B, D) in the prior's base space, float32 on the CPU; may overflow to NaN or inf.

        The number of draws of each member is multinomial, the same for all B; their order is random.
        """
        if len(self.members) == 1:
            return _draw(self.members[0], x, n, generator)
        shares = torch.tensor(self.weights, dtype=torch.float64)
        host = torch.Generator().manual_seed(generator.initial_seed() ^ 1)  # the same counts on any device
        counts = torch.multinomial(shares, n, replacement=True, generator=host).bincount(
            minlength=len(shares)
        )
        pairs = zip(self.members, counts.tolist(), strict=True)
        z = torch.cat([_draw(member, x, count, generator) for member, count in pairs if count])
        return z[torch.randperm(n, generator=host)]


def _draw(member: Posterior, x: Tensor, n: int, generator: Generator) -> Tensor:
    rows = _ROWS.get(member.device.type, _ROWS_GPU)
    blocks = []
    for pixels in x.chunk(-(-len(x) * n // rows)):  # of nearly one size
        context = member.flow.embedding(pixels.to(member.device, torch.float32))
        most = max(rows // len(pixels), 1)
        parts = [min(most, n - start) for start in range(0, n, most)]
        blocks.append(torch.cat([member.flow.draw(context, part, generator)[0].cpu() for part in parts]))
    return torch.cat(blocks, 1)


def default_block(member: Posterior, n: int) -> int:
    """Pixels per block: of a few passes, so that what is done once a block costs little."""
    return max(_PASSES * _ROWS.get(member.device.type, _ROWS_GPU) // n, 1)


@dataclass(frozen=True)
class BlockTask:
    """What every block needs besides its observations.

    Attributes:
        mixture: what draws.
        n, seed: draws per pixel; of all blocks.
        predictive: the misfit to take at the draws, if any.
        images: number of images of every dataset of the map.
    """

    mixture: Mixture
    n: int
    seed: int
    predictive: Predictive | None
    images: Mapping[str, int]

    @torch.no_grad()
    def __call__(self, block: int, x: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Images (K, m) by dataset and status (m,) of the pixels x (m, *x_shape) of a block."""
        seen = np.isfinite(x).reshape(len(x), -1).all(1)
        if not seen.any():
            nothing = {name: np.full((count, len(x)), np.nan) for name, count in self.images.items()}
            return nothing, np.full(len(x), PixelStatus.MASKED, np.uint8)
        # a masked pixel is drawn for as well, so that its neighbours' random numbers do not depend on it
        known = torch.from_numpy(x[np.where(seen, np.arange(len(x)), seen.argmax())])
        z = self.mixture.draw(known, self.n, self._generator(block))
        finite = torch.isfinite(z).all(-1).all(0).numpy()
        status = np.where(seen, np.where(finite, PixelStatus.OK, PixelStatus.REFUSED), PixelStatus.MASKED)
        images = self._images(known, z)
        for values in images.values():
            values[:, status != PixelStatus.OK] = np.nan
        if self.predictive is not None:
            failed = (status == PixelStatus.OK) & np.isnan(images["chi2"][0])
            status[failed] = PixelStatus.NO_SIGNAL
        return images, status.astype(np.uint8)

    def _generator(self, block: int) -> Generator:
        return torch_generator(self.seed, _KEY, block, device=self.mixture.heaviest.device)

    def _images(self, x: Tensor, z: Tensor) -> dict[str, np.ndarray]:
        found = summarise_draws(z, self.mixture.heaviest.prior)._asdict()
        images = {name: values for name, values in found.items() if name in self.images}
        check = self.mixture.heaviest.novelty_check(x)
        images["novelty"] = np.stack([check.input.numpy(), check.embedding.numpy()])
        if self.predictive is not None:
            chi2, p = self.predictive(x, z)
            images |= {"chi2": chi2[None], "chi2_p": p[None]}
        return images
