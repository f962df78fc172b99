import pytest
import torch
from torch import nn

from sbiflow import EmbeddingConfig, FlowConfig
from sbiflow.families import FAMILIES
from sbiflow.flows import ConditionalFlow
from sbiflow.training.optimiser import Muon, build_optimisers, hidden_matrices, orthogonalise
from tests.families import every_family

SHAPES = [(32, 32), (64, 20), (20, 64), (17, 200), (128, 128)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalise_against_the_singular_value_decomposition(shape):
    """Singular vectors stay; singular values above 2 % of the norm land in 0.65 to 1.25, smaller ones stay below."""
    matrices = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = orthogonalise(matrices)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ result @ right.mT
    found = inner.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(inner, torch.diag_embed(found), rtol=0, atol=1e-10)
    relative = values / values.square().sum(-1, keepdim=True).sqrt()
    assert relative.max() > 0.1
    assert (found > 0).all() and (found < 1.25).all()
    assert (found[relative > 0.02] > 0.65).all()


def test_a_batch_of_matrices_is_the_matrices_one_by_one():
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrices[1] *= 1e-6  # the scale of a matrix does not matter
    single = torch.cat([orthogonalise(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), single)
    torch.testing.assert_close(orthogonalise(1e3 * matrices), single)


def test_a_zero_matrix_stays_zero():
    assert not orthogonalise(torch.zeros(1, 20, 20)).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_three_steps_are_those_of_torch_but_for_its_bfloat16(shape):
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimisers = [
        Muon([ours], lr=0.01, momentum=0.95),
        torch.optim.Muon([theirs], lr=0.01, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            before = parameter.detach().clone()
            parameter.grad = gradient.clone()
            optimiser.step()
            parameter.moved = parameter.detach() - before
        difference = (ours.moved - theirs.moved).norm() / theirs.moved.norm()
        assert difference < 0.03  # bfloat16 carries 8 bits through five iterations
        assert ours.moved.norm() / theirs.moved.norm() == pytest.approx(1, abs=0.01)


def test_an_update_has_the_size_of_adams():
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(4))
    Muon([parameter], lr=0.01).step()
    assert parameter.detach().square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.2)


def test_a_parameter_without_a_gradient_is_left_alone():
    still, moved = nn.Parameter(torch.ones(20, 20)), nn.Parameter(torch.ones(20, 20))
    moved.grad = torch.eye(20)
    Muon([still, moved], lr=0.1).step()
    assert still.equal(torch.ones(20, 20)) and not moved.equal(torch.ones(20, 20))


@every_family
@pytest.mark.parametrize("kind", ["muon", "adam"])
def test_every_parameter_is_in_exactly_one_optimiser(family, kind):
    flow = FlowConfig(family=family, layers=2, hidden=24, blocks=2)
    model = ConditionalFlow(
        flow, EmbeddingConfig(hidden=32, features=20), (False, FAMILIES[family].phases, False), (30,)
    )
    optimisers = build_optimisers(model, kind, 0.01)
    held = [id(p) for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert [type(optimiser).__name__ for optimiser in optimisers] == ["Muon", "Adam"][kind == "adam" :]


def test_muon_gets_the_matrices_between_hidden_layers_only():
    model = ConditionalFlow(
        FlowConfig(layers=2, hidden=24, blocks=1), EmbeddingConfig(hidden=32), (False,) * 3, (30,)
    )
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = {names[id(p)] for p in hidden_matrices(model)}
    assert "embedding.embedding.net.first.0.weight" in chosen
    assert "transform.transforms.1.net.first.0.weight" in chosen  # after the whitening
    assert not any("bias" in name or "exit" in name for name in chosen)
    assert all(min(p.shape) > 16 for p in hidden_matrices(model))


def test_a_model_without_hidden_matrices_is_all_adams():
    (only,) = build_optimisers(nn.Linear(4, 4), "muon", 0.1)
    assert isinstance(only, torch.optim.Adam)
