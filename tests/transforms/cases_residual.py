"""Catalogue of the residual flow: the sizes that its inverse and its exact log-determinant are used at."""

from __future__ import annotations

from functools import partial

from sbiflow.transforms.residual_flow import ResidualFlow
from tests.transforms.case import BLOCKS, CONTEXT, HIDDEN, Case


def _residual(dim: int, context: int, layers: int) -> Case:
    return Case(partial(ResidualFlow, dim, context, HIDDEN, layers, BLOCKS), dim, context)


CASES: dict[str, Case] = {
    f"residual, {layers} layers, D={dim}, C={context}": _residual(dim, context, layers)
    for dim, context, layers in ((1, 0, 2), (1, CONTEXT, 1), (2, CONTEXT, 2), (5, 0, 1), (5, CONTEXT, 2))
}
