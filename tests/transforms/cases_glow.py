"""Normalisations, the scaling of NICE, and the parts of Glow, for the catalogue."""

from __future__ import annotations

from functools import partial

import torch
from nflows.transforms import Transform

from sbiflow.families import FlowConfig
from sbiflow.families.glow import glow
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.elementwise import Affine, Chain, Spline
from sbiflow.transforms.glow import SignalCoupling
from sbiflow.transforms.normalise import ActNorm, BatchNorm
from sbiflow.transforms.scaling import Scaling
from sbiflow.transforms.squeeze import MultiScale, Squeeze
from tests.transforms.case import BLOCKS, CONTEXT, HALF_WIDTH, HIDDEN, Case


def _batch_norm(dim: int, columns: list[int] | None = None) -> Transform:
    """In evaluation, where rows are independent, with averages of some data."""
    norm = BatchNorm(dim, columns)
    norm.mean.copy_(torch.linspace(-2, 3, len(norm.mean)))
    norm.variance.copy_(torch.logspace(-3, 2, len(norm.mean)))
    return norm.eval()


def _glow(channels: int, length: int, context: int, linear: bool = True) -> Transform:
    config = FlowConfig("glow", layers=2, hidden=HIDDEN, blocks=BLOCKS, linear=linear)
    return glow(channels, length, config, context)


def _levels(context: int) -> Transform:
    """Of twelve columns and then six, without activation norms and linear maps."""
    maps = [
        Composite([Squeeze(1, 12), SignalCoupling(2, 6, [1], context, Affine(), HIDDEN, BLOCKS)]),
        Composite(
            [Squeeze(1, 6)]
            + [SignalCoupling(2, 3, [moved], context, Affine(), HIDDEN, BLOCKS) for moved in (0, 1)]
        ),
    ]
    return MultiScale(maps)


def _signal_coupling(
    channels: int, length: int, moved: list[int], context: int, spline: bool = False
) -> Case:
    own = Chain(Affine(), Spline(5, HALF_WIDTH)) if spline else Affine()
    make = partial(SignalCoupling, channels, length, moved, context, own, HIDDEN, BLOCKS)
    kept = tuple(i for i in range(channels * length) if i // length not in moved)
    return Case(make, channels * length, context, kept=kept)


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for dim in (1, 5):
        cases[f"actnorm, D={dim}"] = Case(partial(ActNorm, dim), dim, diagonal=True)
        cases[f"batchnorm, D={dim}"] = Case(partial(_batch_norm, dim), dim, diagonal=True)
    cases["actnorm of some columns, D=5"] = Case(
        partial(ActNorm, 5, [0, 3]), 5, kept=(1, 2, 4), diagonal=True
    )
    cases["actnorm of 2 channels, D=6"] = Case(partial(ActNorm, 6, length=3), 6, diagonal=True)
    cases["batchnorm of some columns, D=5"] = Case(
        partial(_batch_norm, 5, [4, 1]), 5, kept=(0, 2, 3), diagonal=True
    )
    cases["squeeze (2, 4)"] = Case(partial(Squeeze, 2, 4), 8)
    for context in (0, CONTEXT):
        suffix = f", C={context}" if context else ""
        for dim, columns in ((1, [0]), (5, [0, 1, 2, 3, 4]), (5, [3, 1])):
            kept = tuple(i for i in range(dim) if i not in columns)
            make = partial(Scaling, dim, columns, context, HIDDEN, BLOCKS)
            cases[f"scaling of {len(columns)}, D={dim}{suffix}"] = Case(
                make, dim, context, kept=kept, diagonal=True
            )
        for channels, length, moved in ((1, 4, [0]), (3, 2, [2, 0])):
            name = f"signal coupling ({channels}, {length}) of {moved}{suffix}"
            cases[name] = _signal_coupling(channels, length, moved, context)
        # Whole flows of few columns: with random norms, linear maps and networks, two blocks on several levels have a
        # condition of 1e6 to 1e13, which float32 cannot follow and float64 hardly. Those are in test_glow.py, with
        # parameters of the size that training leads to.
        for channels, length in ((1, 1), (1, 2)):
            cases[f"glow ({channels}, {length}){suffix}"] = Case(
                partial(_glow, channels, length, context), channels * length, context
            )
        cases[f"two levels, D=12{suffix}"] = Case(partial(_levels, context), 12, context)
    cases[f"signal coupling by splines (2, 4), C={CONTEXT}"] = _signal_coupling(
        2, 4, [1], CONTEXT, spline=True
    )
    for channels, length in ((3, 1), (1, 4)):
        make = partial(_glow, channels, length, CONTEXT, linear=False)
        cases[f"glow without convolutions ({channels}, {length}), C={CONTEXT}"] = Case(
            make, channels * length, CONTEXT
        )
    return cases


GLOW_CASES = _cases()
