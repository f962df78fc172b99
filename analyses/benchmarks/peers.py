"""The same flow in every library: 5 transforms, conditioners of two residual blocks, SiLU, a context of 10 numbers.

What is equal and what cannot be:

- MAF. nflows: MaskedAffineAutoregressiveTransform, two residual blocks, the context in each as in ours. zuko: MAF with
  `residual=True` and two hidden layers, which is two residual blocks; the context enters at the first layer only, so
  it has 1 to 8 % fewer parameters.
- Spline coupling, 8 bins on [-5, 5]. Ours has the spline only: the affine map that `FlowConfig` puts in front of it,
  which no peer has, is a candidate of its own. nflows: its own ResidualNet (context in a gated linear unit), or ours
  inside its coupling. zuko: five hidden layers, so as many hidden-by-hidden products; no residuals. BayesFlow:
  CouplingFlow without ActNorm and permutation, five residual dense layers; a layer of its is two couplings, so it is
  compared at six couplings; its spline has four more parameters a column, the edges.

Activations are SiLU everywhere; `activation="relu"` gives nflows and zuko their own default. nflows' MAF starts with
scales near 1, as the others do, and every parameter gets some noise, so that no flow is the identity or another
special case. All are trained by the same Adam, so only the flow differs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet as NflowsNet
from nflows.transforms import (
    CompositeTransform,
    PiecewiseRationalQuadraticCouplingTransform,
    ReversePermutation,
)
from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform
from torch import Tensor, nn
from torch.nn import functional

from analyses.benchmarks.architecture import AS_TRAINED, BAYESFLOW, NFLOWS, OURS, SAME_NET, ZUKO, Case, Model
from sbiflow.embedding import EmbeddingConfig
from sbiflow.families import FlowConfig
from sbiflow.flows import ConditionalFlow
from sbiflow.optional import require
from sbiflow.transforms.composite import Composite
from sbiflow.transforms.coupling import Coupling
from sbiflow.transforms.elementwise import Spline
from sbiflow.transforms.networks import ResidualNet

HALF_WIDTH = 5.0
CHUNK, CHUNK_MAF = (
    4096,
    16_384,
)  # draws per pass of ours, as in sbiflow.posterior; the peers draw all in one pass
NOISE = 0.02


def build(name: str, case: Case, seed: int = 1) -> Model:
    """The library `name`'s flow for a case.

    Raises:
        ImportError: the library is not installed.
        ValueError: a library that has no such flow.
    """
    if (case.family, name) not in BUILDERS:
        expected = ", ".join(other for family, other in BUILDERS if family == case.family)
        raise ValueError(f"{case.family}: expected one of {expected}; got {name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BUILDERS[case.family, name](case)
        with torch.no_grad():
            for parameter in model.trained:
                parameter.add_(NOISE * torch.randn_like(parameter))
    return replace(model, name=name)


def drawn_in_chunks(flow: ConditionalFlow, x: Tensor, n: int) -> Tensor:
    """As `Posterior` does without the prior's bounds: x is embedded once, a few thousand rows a pass."""
    parts, step = [], max(CHUNK // len(x), 1) * flow.chunks_at_once
    context = flow.embedding(x)
    for start in range(0, n, step):
        parts.append(flow.draw(context, min(step, n - start), None)[0])
    return torch.cat(parts)


def _ours(case: Case, family: str, transform: Composite | None = None) -> Model:
    config = FlowConfig(
        family, case.layers, case.hidden, case.blocks, case.bins, HALF_WIDTH, linear=False, start="prior"
    )
    flow = ConditionalFlow(config, EmbeddingConfig(kind="none"), (False,) * case.dim, (case.context,))
    if transform is not None:
        flow.transform = transform
    return Model(OURS, flow, flow.log_prob, lambda x, n: drawn_in_chunks(flow, x, n))


def our_coupling(case: Case) -> Model:
    sizes = (case.context, Spline(case.bins, HALF_WIDTH), case.hidden, case.blocks)
    couplings = Composite(Coupling(case.dim, case.moved(layer), *sizes) for layer in range(case.layers))
    return _ours(case, "spline_coupling", couplings)


def _nflows(case: Case, transforms: list[nn.Module]) -> Model:
    flow = Flow(CompositeTransform(transforms), StandardNormal([case.dim]))
    return Model(NFLOWS, flow, flow.log_prob, lambda x, n: flow.sample(n, x).transpose(0, 1))


def nflows_maf(case: Case) -> Model:
    sizes, activation = (
        (case.dim, case.hidden, case.context, case.blocks),
        getattr(functional, case.activation),
    )
    transforms: list[nn.Module] = []
    for layer in range(case.layers):
        transforms += [ReversePermutation(case.dim)] if layer else []
        transforms.append(_near_identity(MaskedAffineAutoregressiveTransform(*sizes, activation=activation)))
    return _nflows(case, transforms)


@torch.no_grad()
def _near_identity(transform: MaskedAffineAutoregressiveTransform) -> MaskedAffineAutoregressiveTransform:
    """Scales near 1: as it is made, draws in 15 dimensions reach 1e29 and their densities are NaN."""
    exit = transform.autoregressive_net.final_layer
    exit.weight.mul_(0.1)
    exit.bias.view(-1, 2).copy_(torch.tensor([math.log(math.e - 1), 0.0]))
    return transform


def _nflows_coupling(case: Case, network: Callable[[int, int], nn.Module]) -> Model:
    masks = [[int(i in case.moved(layer)) for i in range(case.dim)] for layer in range(case.layers)]
    make = PiecewiseRationalQuadraticCouplingTransform
    return _nflows(case, [make(mask, network, case.bins, "linear", HALF_WIDTH) for mask in masks])


def nflows_coupling(case: Case) -> Model:
    activation = getattr(functional, case.activation)
    return _nflows_coupling(
        case, lambda i, o: NflowsNet(i, o, case.hidden, case.context, case.blocks, activation)
    )


def nflows_coupling_same_networks(case: Case) -> Model:
    def network(inputs: int, outputs: int) -> nn.Module:
        net = ResidualNet(inputs, outputs, case.context, case.hidden, case.blocks)
        net.hidden_features = case.hidden  # type: ignore[assignment]  # nflows scales its bins by it
        return net

    return _nflows_coupling(case, network)


def _zuko_activation(case: Case) -> type[nn.Module]:
    return {"silu": nn.SiLU, "relu": nn.ReLU}[case.activation]


def _zuko(flow: nn.Module) -> Model:
    return Model(ZUKO, flow, lambda z, x: flow(x).log_prob(z), lambda x, n: flow(x).sample((n,)))


def zuko_maf(case: Case) -> Model:
    widths, activation = [case.hidden] * case.blocks, _zuko_activation(case)
    flows = require("zuko.flows", extra="bench")
    sizes = {"transforms": case.layers, "hidden_features": widths, "residual": True, "activation": activation}
    return _zuko(flows.MAF(case.dim, case.context, **sizes))


def zuko_coupling(case: Case) -> Model:
    flows, coupling = require("zuko.flows", extra="bench"), require("zuko.flows.coupling", extra="bench")
    spline = {
        "univariate": require("zuko.transforms", extra="bench").MonotonicRQSTransform,
        "shapes": [(case.bins,), (case.bins,), (case.bins - 1,)],
    }
    net = {"hidden_features": [case.hidden] * (2 * case.blocks + 1), "activation": _zuko_activation(case)}
    transforms = []
    for layer in range(case.layers):
        kept = [i not in case.moved(layer) for i in range(case.dim)]
        transforms.append(coupling.GeneralCouplingTransform(case.dim, case.context, kept, **spline, **net))
    normal = require("zuko.distributions", extra="bench").DiagNormal
    base = flows.UnconditionalDistribution(normal, torch.zeros(case.dim), torch.ones(case.dim), buffer=True)
    return _zuko(flows.Flow(transforms, base))


def bayesflow_coupling(case: Case) -> Model:
    if case.layers % 2:
        raise ValueError(f"bayesflow: expected an even number of couplings, got {case.layers}")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    with torch.enable_grad():  # importing bayesflow turns autograd off; leaving the block turns it on again
        networks = require("bayesflow", extra="bench").networks
    widths = (case.hidden,) * (2 * case.blocks + 1)
    net = networks.CouplingFlow(
        depth=case.layers // 2,
        transform="spline",
        permutation=None,
        use_actnorm=False,
        subnet_kwargs={"widths": widths, "activation": case.activation, "residual": True, "dropout": 0.0},
        transform_kwargs={"bins": case.bins},
    )
    net.build((1, case.dim), (1, case.context))

    def draw(x: Tensor, n: int) -> Tensor:
        return net.sample((n, len(x)), conditions=x.expand(n, *x.shape))

    return Model(BAYESFLOW, net, lambda z, x: net.log_prob(z, conditions=x), draw)


BUILDERS: dict[tuple[str, str], Callable[[Case], Model]] = {
    ("maf", OURS): lambda case: _ours(case, "maf"),
    ("maf", NFLOWS): nflows_maf,
    ("maf", ZUKO): zuko_maf,
    ("spline", OURS): our_coupling,
    ("spline", AS_TRAINED): lambda case: _ours(case, "spline_coupling"),
    ("spline", NFLOWS): nflows_coupling,
    ("spline", SAME_NET): nflows_coupling_same_networks,
    ("spline", ZUKO): zuko_coupling,
    ("spline", BAYESFLOW): bayesflow_coupling,
}
