"""Which flow, and how large."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from nflows.transforms.base import Transform

from sbiflow.families.family import NORMALISATIONS, Flags
from sbiflow.families.registry import FAMILIES
from sbiflow.families.spline_kinds import SPLINES
from sbiflow.structure import Structure
from sbiflow.transforms.splines import MIN_BIN


@dataclass(frozen=True)
class FlowConfig:
    """Which flow.

    Attributes:
        family: one of `FAMILIES`; the README's page "Which flow?" compares them.
        layers: number of transforms; "linear" is always one, since more of them are one again. "flow_matching" is
            one network of layers x blocks residual blocks.
        hidden, blocks: width and residual blocks of every conditioner.
        bins: spline bins; for "flowpp", logistics of a mixture.
        spline: of which kind the spline families are: one of `SPLINES`. Phases have rational-quadratic ones always.
        half_width: splines act on [-half_width, half_width] of the base space, the identity outside.
        linear: columns are mixed between transforms, as `mixing` says.
        mixing: "lu", a linear map between any two transforms, learned as a product of triangular matrices; or
            "permutation", a fixed random order after every second one (RealNVP). Phases are not mixed.
        normalisation: after every transform "none"; "actnorm", a scale and shift per column started from the data; or
            "batchnorm", batch statistics while training (one lane only). Phases are not normalised.
        start: what the untrained flow is: "regression", the Gaussian posterior of a linear fit to the simulations
            (guess.py), or "prior".
        dropout: share of the conditioners' units dropped while training, against over-fitting few simulations.
        structure: anchors and symmetries of the posterior; `train` takes the simulator's if there is none here.
    """

    family: str = "spline_coupling"
    layers: int = 5
    hidden: int = 64
    blocks: int = 2
    bins: int = 8
    half_width: float = 5.0
    linear: bool = True
    start: str = "regression"
    dropout: float = 0.0
    structure: Structure = field(default_factory=Structure)
    mixing: str = "lu"
    normalisation: str = "none"
    spline: str = "rational_quadratic"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"flow family: expected one of {', '.join(FAMILIES)}, got {self.family!r}")
        if self.spline not in SPLINES:
            raise ValueError(f"flow spline: expected one of {', '.join(SPLINES)}, got {self.spline!r}")
        if self.start not in ("regression", "prior"):
            raise ValueError(f'flow start: expected "regression" or "prior", got {self.start!r}')
        if self.mixing not in ("lu", "permutation"):
            raise ValueError(f'flow mixing: expected "lu" or "permutation", got {self.mixing!r}')
        if self.normalisation not in ("none", *NORMALISATIONS):
            raise ValueError(
                f"flow normalisation: expected one of none, {', '.join(NORMALISATIONS)}, got {self.normalisation!r}"
            )
        if min(self.layers, self.hidden) < 1 or self.blocks < 0 or not 0 < self.half_width < math.inf:
            raise ValueError(f"flow: expected positive sizes, got {self}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"flow dropout: expected a share in [0, 1), got {self.dropout}")
        if not 2 <= self.bins < 1 / MIN_BIN:
            raise ValueError(
                f"flow: expected at least 2 bins and fewer than {1 / MIN_BIN:.0f}, got {self.bins}"
            )

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> FlowConfig:
        """From what `dataclasses.asdict` made of one, and JSON of that."""
        structure = {"structure": Structure.from_spec(spec["structure"])} if "structure" in spec else {}
        return cls(**(spec | structure))


def build_transform(config: FlowConfig, periodic: Flags, context: int) -> Transform:
    """The flow's transform from z to the base, as an nflows Transform; `context` is C.

    Raises:
        ValueError: too few layers to move every column, or a phase where the family takes none.
    """
    family, dim = FAMILIES[config.family], len(periodic)
    if config.layers < family.least(dim):
        raise ValueError(
            f"{config.family}: expected at least {family.least(dim)} layers for {dim} parameters, got {config.layers}"
        )
    if any(periodic) and not family.phases:
        able = ", ".join(name for name, other in FAMILIES.items() if other.phases)
        raise ValueError(
            f"{config.family}: expected no periodic parameters, got {sum(periodic)}; {able} take them"
        )
    made = family.build(config, periodic, context)
    _check_normalised(config, made, periodic)
    return made


def _check_normalised(config: FlowConfig, made: Transform, periodic: Flags) -> None:
    """Raise for a family that is built in a way of its own, without the layers that were asked for."""
    wanted = NORMALISATIONS.get(config.normalisation)
    if wanted and not all(periodic) and not any(isinstance(part, wanted) for part in made.modules()):
        raise ValueError(f'{config.family}: expected normalisation "none", got "{config.normalisation}"')
