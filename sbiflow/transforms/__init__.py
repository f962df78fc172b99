"""Invertible maps, each an `nflows.transforms.Transform`: forward(inputs, context) -> (outputs, log|det|).

Two things go beyond nflows' convention, and nothing of it is given up: inputs may have any leading shape (..., D),
and the context (..., C) only has to broadcast against them, so that a million draws for one observation need one
row of context.
"""
