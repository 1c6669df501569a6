"""The house stands: each floor imports from the floors above it only, CuPy stays behind its door, and `import minidl` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minidl

ROOT = Path(minidl.__file__).parent

# From the top down. A name is a file or a folder of minidl/; a file may import from its own folder and from the lines above it.
FLOORS = ["errors", "names", "library", "backend_cupy", "backend", "shortage", "recording", "memory", "pool", "profiler", "kernels",
          "watchers", "tensor", "modes", "plan", "graph", "walk", "profiling", "autograd", "functions", "nn", "curvature", "models",
          "data", "optim", "parallel", "checkpoint", "pictures", "testing", "exercises", "run", "held", "capture", "loop", "measure",
          "record", "display", "report", "config", "options", "task", "announce", "lead", "train", "predict", "launch"]
COMMANDS = ("train", "predict", "launch")


def modules():
    """Every module of minidl: its name without 'minidl.', and its file. A package is its __init__.py."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


MODULES = dict(modules())


def imports(path):
    """The modules of minidl that a file imports, with the lines; also inside functions, but not those that only type checkers read."""
    for node in ast.walk(without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write the whole name: from minidl..."
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, inner = name.partition(".")
            if top == "minidl":
                yield longest_module(inner), node.lineno


def longest_module(name):
    """The module in 'kernels.window.pair' is 'kernels.window', the last part being a name in it."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def without_type_checking(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return tree


def floor(module):
    return FLOORS.index(module.partition(".")[0])


INNER = [name for name in MODULES if name]                      # minidl itself stands outside, and may import from everywhere


def test_imports_are_seen_wherever_they_stand(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text("""
import minidl.backend, numpy
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from minidl.train import fit
def f():
    from minidl.kernels.window import pair
    from minidl import nn, Tensor
""")
    assert sorted(imports(path)) == [("", 8), ("backend", 2), ("kernels.window", 7), ("nn", 8)]


@pytest.mark.parametrize("module", INNER)
def test_each_module_has_a_floor(module):
    assert module.partition(".")[0] in FLOORS


@pytest.mark.parametrize("module", INNER)
def test_each_floor_imports_from_those_above_it(module):
    for imported, line in imports(MODULES[module]):
        where = f"{MODULES[module].relative_to(ROOT)}:{line} imports minidl.{imported}"
        if imported:
            assert imported.partition(".")[0] == module.partition(".")[0] or floor(imported) < floor(module), f"{where}, from a floor below"
        else:
            assert module in COMMANDS, f"{where}, the whole house"


def test_there_are_no_circles():
    waiting = {module: {imported for imported, _ in imports(MODULES[module])} - {module} for module in INNER}
    while waiting:
        ready = {module for module, needed in waiting.items() if not needed & set(waiting)}
        assert ready, f"these wait for each other: {sorted(waiting)}"
        waiting = {module: needed for module, needed in waiting.items() if module not in ready}


@pytest.mark.parametrize("module", INNER)
def test_only_the_backend_and_the_gpu_kernels_know_cupy(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        else:
            names = [getattr(node, "id", ""), getattr(node, "value", "")]           # a variable; the text given to import_module
        if module not in ("backend", "backend_cupy", "kernels.cuda"):
            assert not any(isinstance(name, str) and name.partition(".")[0] == "cupy" for name in names), f"line {node.lineno}"


def in_a_fresh_process(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT.parent).stdout.split()


@pytest.mark.process
class TestImportMinidl:
    def test_brings_nothing_but_numpy(self):
        brought = in_a_fresh_process("""
import sys, numpy.random
before = set(sys.modules)
import minidl
print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))
""")
        assert set(brought) == {"minidl"}

    def test_leads_to_the_modules_that_are_imported_later(self):
        assert in_a_fresh_process("""
import minidl
print(minidl.loop.fit.__name__, minidl.pictures.Picture.__name__, hasattr(minidl, 'nothing'))
""") == ["fit", "Picture", "False"]

    def test_takes_no_time_beside_numpy(self):
        """The promise is 0.2 s with NumPy; a busy machine gets five times that without it."""
        seconds, = in_a_fresh_process("""
import numpy, time
start = time.perf_counter()
import minidl
print(time.perf_counter() - start)
""")
        assert float(seconds) < 1
