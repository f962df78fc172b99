"""What every spline does first: which bin a value is in, and where in that bin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Located(NamedTuple):
    """The bin of each value, (...) each but `place`, (..., 1): its number.

    `inside` says whether the value is in the interval, `share` how far it is from the bin's lower to its upper end,
    in [0, 1], along the known axis.
    """

    inside: Tensor
    place: Tensor
    share: Tensor
    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor

    @classmethod
    def among(cls, grid: Tensor, inputs: Tensor, half_width: float, inverse: bool) -> Located:
        """Among knots of x and y (..., 2, K + 1) from -half_width to half_width; inputs (...)."""
        axis = grid[..., int(inverse), :]
        inside = (inputs >= -half_width) & (inputs <= half_width)
        value = inputs.clamp(-half_width, half_width)
        place = (value[..., None] >= axis[..., 1:-1]).sum(-1, keepdim=True)  # inner knots at or below
        both = place[..., None, :].expand(*grid.shape[:-1], 1)
        low = torch.gather(grid, -1, both)[..., 0]
        size = torch.gather(grid, -1, both + 1)[..., 0] - low
        share = (value - low[..., int(inverse)]) / size[..., int(inverse)]
        return cls(inside, place, share, low[..., 0], low[..., 1], size[..., 0], size[..., 1])

    def ends(self, at_knots: Tensor) -> tuple[Tensor, Tensor]:
        """Of values at the knots (..., K + 1), those at both ends of the bin, (...)."""
        left, right = (torch.gather(at_knots, -1, self.place + i)[..., 0] for i in (0, 1))
        return left, right

    def outputs(self, share: Tensor, inverse: bool) -> Tensor:
        """The other coordinate, from the share of the bin that it has gone."""
        return self.x + self.width * share if inverse else self.y + self.height * share

    def or_identity(self, inputs: Tensor, outputs: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        """The identity outside of the interval."""
        return torch.where(self.inside, outputs, inputs), torch.where(self.inside, log_slope, 0.0)
