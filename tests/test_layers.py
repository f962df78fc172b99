"""The layers of the design, read from the imports of the source.

A module imports lower layers and its own, never a higher one, and no chain of imports comes back to where it began.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = [
    "contracts structure checks observing seeding provenance optional pareto verdict",
    "transforms embedding guess novelty model_file store store_file store_meta store_writer samples_file observation "
    "datasets plots summary",
    "families priors flows",
    "blocks execution function_simulator pairs simulate draws samples importance elsewhere maps posterior "
    "ensemble",
    "training calibration integrate density",
    "cli __init__",
    "__main__",
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}

# Libraries that only these parts of the package may import.
ONLY_IN = {
    "nflows": {"transforms", "families"},
    "h5py": {"gravitational_waves", "store_file", "samples_file", "observation", "maps", "cli"},
    "matplotlib": {"plots", "draws", "samples", "training", "calibration"},
    "corner": {"plots"},
    "emcee": {"calibration"},
    "safetensors": {"model_file", "training", "cli"},
    "typer": {"cli"},
    "jinja2": {"calibration"},
    "pooch": {"datasets"},
    "requests": set(),
    "pickle": {"simulate"},  # to see whether a simulator can be sent to a process
    "sbi": set(),
    "zuko": set(),
}


def sources(package: str) -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of every module."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from at_run_time(other)
            continue
        yield child
        yield from at_run_time(child)


def imported(name: str, tree: ast.Module, modules: dict[str, ast.Module]) -> set[str]:
    """Modules that a module imports at run time: `from sbiflow import plots` is sbiflow.plots."""
    found = set()
    for node in at_run_time(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import in line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else str(node.module))
    return found


def part(name: str) -> str:
    """sbiflow.training.loop -> training; sbiflow -> __init__."""
    return [*name.split("."), "__init__"][1]


SBIFLOW, SIMULATORS = sources("sbiflow"), sources("simulators")
EVERYTHING = SBIFLOW | SIMULATORS
IMPORTS = {name: imported(name, tree, EVERYTHING) for name, tree in EVERYTHING.items()}


def breaches(name: str, found: set[str]) -> list[str]:
    """Imports of sbiflow by one of its modules that go upwards."""
    own = [other for other in found if other.split(".")[0] == "sbiflow"]
    return [other for other in own if LEVEL[part(other)] > LEVEL[part(name)]]


def test_every_module_has_a_layer_and_every_layer_its_modules():
    assert {part(name) for name in SBIFLOW} == set(LEVEL)


@pytest.mark.parametrize("name", SBIFLOW)
def test_imports_go_down(name):
    assert breaches(name, IMPORTS[name]) == []


@pytest.mark.parametrize("name", [name for name in SBIFLOW if part(name) != "cli"])
def test_only_the_command_line_knows_the_simulators(name):
    others = {other.split(".")[0] for other in IMPORTS[name]}
    assert not others & {"simulators", "analyses", "tests"}


@pytest.mark.parametrize("name", SIMULATORS)
def test_simulators_import_contracts_priors_and_small_helpers_only(name):
    own = {part(other) for other in IMPORTS[name] if other.split(".")[0] == "sbiflow"}
    assert own <= {"contracts", "structure", "priors", "checks", "optional"}


@pytest.mark.parametrize("name", EVERYTHING)
def test_libraries_stay_where_they_belong(name):
    libraries = {other.split(".")[0] for other in IMPORTS[name]}
    for library in libraries & ONLY_IN.keys():
        assert part(name) in ONLY_IN[library], f"{name} imports {library}"


@pytest.mark.parametrize("name", ["sbiflow.store", "sbiflow.store_file", "sbiflow.store_meta", "sbiflow.plots",
                                  "sbiflow.store_writer", "sbiflow.summary", "sbiflow.samples_file"])  # fmt: skip
def test_files_and_figures_need_no_torch(name):
    assert not {other.split(".")[0] for other in reachable(name)} & {"torch", "nflows"}


def reachable(name: str) -> set[str]:
    """Everything that a module imports, directly or not."""
    found, new = set(), {name}
    while new:
        found |= new
        new = set().union(*(IMPORTS.get(other, set()) for other in new)) - found
    return found - {name}


def test_plots_import_nothing_of_the_package():
    own = [name for name in SBIFLOW if part(name) == "plots"]
    assert {part(other) for name in own for other in IMPORTS[name] if "sbiflow" in other} == {"plots"}


def test_contracts_import_nothing_of_the_package_at_run_time():
    assert not any(other.startswith("sbiflow") for other in IMPORTS["sbiflow.contracts"])


def cycle(imports: dict[str, set[str]]) -> list[str]:
    """A chain of imports that comes back, or []."""
    done: set[str] = set()

    def visit(name: str, chain: tuple[str, ...]) -> list[str]:
        if name in chain:
            return [*chain[chain.index(name) :], name]
        if name in done or name not in imports:
            return []
        for other in sorted(imports[name]):
            found = visit(other, (*chain, name))
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in imports if (found := visit(name, ()))), [])


def test_no_chain_of_imports_comes_back():
    assert cycle(IMPORTS) == []


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_import_inside_a_function(name):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inner = [
        node.lineno
        for function in ast.walk(EVERYTHING[name])
        if isinstance(function, functions)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert inner == []


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_assertion_in_the_package(name):
    assert [node.lineno for node in ast.walk(EVERYTHING[name]) if isinstance(node, ast.Assert)] == []


# --- the reader itself


READER = """
from __future__ import annotations
import torch
from sbiflow import plots, train
from sbiflow.training.loop import rate
if TYPE_CHECKING:
    from sbiflow.posterior import Posterior
else:
    import numpy
try:
    import astropy
except ImportError:
    pass
"""


def test_the_reader_sees_every_import_at_run_time():
    assert imported("sbiflow.x", ast.parse(READER), EVERYTHING) == {
        "__future__", "torch", "sbiflow.plots", "sbiflow", "sbiflow.training.loop", "numpy", "astropy",
    }  # fmt: skip


def test_the_reader_finds_what_it_is_to_forbid():
    assert breaches("sbiflow.checks", {"sbiflow.priors", "torch"}) == ["sbiflow.priors"]
    assert breaches("sbiflow.posterior", {"sbiflow.training.loop", "sbiflow.flows"}) == [
        "sbiflow.training.loop"
    ]
    assert breaches("sbiflow.posterior", {"sbiflow"}) == ["sbiflow"]
    assert cycle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"a"}}) == ["a", "b", "d", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []
