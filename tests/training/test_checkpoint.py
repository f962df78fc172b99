import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sbiflow import EmbeddingConfig, FlowConfig, Posterior
from sbiflow.training import checkpoint as module
from sbiflow.training.checkpoint import Checkpoint, load_tensors, pack, save_tensors, unpack
from sbiflow.training.optimiser import build_optimisers
from tests.quick import CONFIG, EMBEDDING, FLOW, NOT_A_PICKLE, quick_store, quick_train, same_weights
from tests.toys import LinearGaussian, normal_prior

ROOT = Path(__file__).parents[2]
TOY = LinearGaussian()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store, a checkpoint of a complete run, and its posterior saved."""
    folder = tmp_path_factory.mktemp("checkpoint")
    store = quick_store(folder / "s.h5", TOY)
    quick_train(store, TOY, checkpoint=folder / "c").save(folder / "model")
    return folder


@pytest.fixture
def store(folder):
    return quick_store(folder / "s.h5", TOY)


@pytest.fixture
def file(folder, tmp_path):
    (tmp_path / "c").write_bytes((folder / "c").read_bytes())
    return tmp_path / "c"


def test_killed_at_any_moment_and_resumed_the_weights_are_the_same_to_the_bit(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "tests.training.killed", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    steps = json.loads(run.stdout)["steps"]
    assert len(steps) == 5 and steps == sorted(steps)
    assert 0 < steps[0] < steps[-1] < 100 and all(step % 7 == 0 for step in steps)
    whole, killed = (tmp_path / f"{name}.model" / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert load_tensors(tmp_path / "whole")[0].keys() == load_tensors(tmp_path / "killed")[0].keys()
    for name, value in load_tensors(tmp_path / "whole")[0].items():
        assert value.equal(load_tensors(tmp_path / "killed")[0][name]), name


def test_a_finished_run_is_not_trained_again(store, file, folder, monkeypatch):
    monkeypatch.setattr("sbiflow.training.loop.Training._update", None)
    again = quick_train(store, TOY, checkpoint=file)
    assert same_weights(again, Posterior.load(folder / "model"))
    assert again.info.steps == CONFIG.steps and again.log.validation_step == [0, 10, 20, 30, 40]


def test_a_checkpoint_is_no_pickle(folder):
    with safe_open(folder / "c", "pt") as opened:
        assert json.loads(opened.metadata()["meta"])["state"]["step"] == CONFIG.steps
    with (folder / "c").open("rb") as opened, pytest.raises(NOT_A_PICKLE):
        pickle.load(opened)


def noisier():
    return replace(TOY, noise_sd=0.6)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"config": replace(CONFIG, seed=1)}, r"config\.seed: expected 1, got 0"),
        ({"config": replace(CONFIG, learning_rate=0.1)}, r"config\.learning_rate: expected 0\.1, got 0\.004"),
        ({"flow": replace(FLOW, family="maf")}, r"flow\.family: expected maf, got spline_coupling"),
        ({"embedding": replace(EMBEDDING, blocks=2)}, r"embedding\.blocks: expected 2, got 1"),
        ({"simulator": noisier()}, r"noise: expected \w+, got \w+"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(store, file, options, expected):
    before = file.read_bytes()
    options = {"simulator": TOY, **options}
    with pytest.raises(
        ValueError, match=rf"c: a checkpoint of another run; use another file\. {expected}"
    ) as e:
        quick_train(store, checkpoint=file, **options)
    unchanged = {"config.batch", "flow.layers", "embedding.kind", "prior.t0"}
    assert not any(name in str(e.value) for name in unchanged)
    assert file.read_bytes() == before


def test_a_checkpoint_of_other_simulations_is_refused(file, tmp_path):
    other = quick_store(tmp_path / "other.h5", TOY, seed=4)
    with pytest.raises(ValueError, match=r"another run; use another file\. data: expected \w+, got \w+"):
        quick_train(other, TOY, checkpoint=file)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_checkpoint_is_refused_in_one_line(store, file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"c: expected a safetensors file written by sbiflow, got") as error:
        quick_train(store, TOY, checkpoint=file)
    assert "\n" not in str(error.value)


def test_a_foreign_file_is_refused(store, tmp_path):
    for name, write in {
        "tensors": lambda path: save_file({"a": torch.ones(2)}, path),
        "torch": lambda path: torch.save({"a": torch.ones(2)}, path),
        "folder": lambda path: path.mkdir(),
    }.items():
        write(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: expected a safetensors file written by sbiflow"):
            quick_train(store, TOY, checkpoint=tmp_path / name)


def test_the_folder_of_the_checkpoint_is_made_before_the_work(store, tmp_path):
    quick_train(store, TOY, checkpoint=tmp_path / "a" / "b" / "c")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["c"]


def test_checkpoint_every_has_to_be_a_number_of_steps(store, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every: expected a whole number >= 1, got 0"):
        quick_train(store, TOY, checkpoint=tmp_path / "c", checkpoint_every=0)


def test_a_write_that_fails_keeps_the_former_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    save_tensors(tmp_path / "c", {"a": torch.ones(2)}, {"n": 1})
    real = module.save_file

    def full(tensors, path, meta):
        real(tensors, path, meta)
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match=r"c: cannot be written \(.*No space left.*\); a former file is kept"):
        save_tensors(tmp_path / "c", {"a": torch.zeros(2)}, {"n": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    tensors, meta = load_tensors(tmp_path / "c")
    assert tensors["a"].equal(torch.ones(2)) and meta == {"n": 1}


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        save_tensors(disk / "c", {"a": torch.ones(8_000)}, {})
        with pytest.raises(OSError, match=r"c: cannot be written .*; a former file is kept"):
            save_tensors(disk / "c", {"a": torch.zeros(12_000)}, {})
        assert [path.name for path in disk.iterdir()] == ["c"]
        assert load_tensors(disk / "c")[0]["a"].equal(torch.ones(8_000))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kind", ["muon", "adam"])
def test_optimisers_go_on_as_if_nothing_had_happened(tmp_path, kind):
    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.Linear(20, 3))
        return model, build_optimisers(model, kind, 0.01)

    def step(model, optimisers, seed):
        x = torch.randn(8, 20, generator=torch.Generator().manual_seed(seed))
        model.zero_grad()
        model(x).square().sum().backward()
        for optimiser in optimisers:
            optimiser.step()

    with torch.random.fork_rng():
        model, optimisers = make()
        other, others = make()
    for seed in range(3):
        step(model, optimisers, seed)
    save_tensors(tmp_path / "c", pack(model, optimisers, {"w": torch.ones(2)}), {})
    best = unpack(load_tensors(tmp_path / "c")[0], other, others)
    assert best["w"].equal(torch.ones(2))
    for seed in range(3, 6):
        step(model, optimisers, seed)
        step(other, others, seed)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert a.equal(b)


def test_identity_with_tuples_and_none_is_recognised(tmp_path):
    identity = {"a": {"b": (1, 2), "c": None}, "d": 0.1}
    file = Checkpoint(tmp_path / "c", 1, identity)
    file.write({"t": torch.ones(1)}, {"step": 3})
    assert file.read()[1] == {"step": 3}
    with pytest.raises(ValueError, match=r"a\.c: expected 5, got None; d: expected None, got 0\.1"):
        Checkpoint(tmp_path / "c", 1, {"a": {"b": (1, 2), "c": 5}}).read()


def test_settings_are_those_used(folder):
    """What the fixtures call the same run is compared field by field with the configuration."""
    meta = load_tensors(folder / "c")[1]["identity"]
    assert FlowConfig.from_spec(meta["flow"]) == FLOW and EmbeddingConfig(**meta["embedding"]) == EMBEDDING
    assert meta["config"]["steps"] == CONFIG.steps and list(meta["prior"]) == list(normal_prior().names)
