"""Source hashes and revisions, and optional imports."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import subprocess
from pathlib import Path

import pytest

from sbiflow.function_simulator import FunctionSimulator
from sbiflow.optional import require
from sbiflow.priors import Normal, Prior
from sbiflow.provenance import git_revision, source_hash

PRIOR = Prior(Normal("a", 0.0, 1.0))


def function(theta, rng):
    return theta


def load(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_in_a_module_the_hash_is_that_of_its_file():
    here = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    wrapped = FunctionSimulator(function, PRIOR, (1,), "f")
    assert source_hash(function) == here
    assert source_hash(functools.partial(function, rng=None)) == here
    assert source_hash(wrapped) == here  # the function's own, not that of the wrapper


def test_in_a_script_the_hash_is_that_of_the_function_alone(monkeypatch):
    text = "def function(theta, rng):\n    return theta\n"
    monkeypatch.setattr(function, "__module__", "__main__")
    assert source_hash(function) == hashlib.sha256(text.encode()).hexdigest()


def test_a_simulator_can_give_its_own_hash():
    class Simulator:
        source_hash = "mine"

    assert source_hash(Simulator()) == "mine"


def test_no_source_no_hash():
    namespace: dict = {}
    exec("def f(theta, rng): return theta", namespace)
    assert source_hash(namespace["f"]) == ""


def test_git_revision(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    path = tmp_path / "some_simulator.py"
    path.write_text("def f(theta, rng):\n    return theta\n")
    fn = load(path, "some_simulator").f
    assert git_revision(fn) == ""
    git("init", "-q")
    git("add", ".")
    git("-c", "core.hooksPath=/dev/null", "commit", "-q", "-m", "x")
    revision = git("rev-parse", "HEAD")
    assert git_revision(fn) == revision
    path.write_text("def f(theta, rng):\n    return -theta\n")
    assert git_revision(fn) == revision + "+"


def test_a_missing_optional_module_names_its_extra():
    with pytest.raises(ImportError, match=r'run `pip install "sbiflow\[export\]"`'):
        require("a_module_that_is_not_there.part", extra="export")


def test_a_module_that_itself_fails_to_import_says_so(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import another_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="another_that_is_not_there"):
        require("half_installed", extra="export")
