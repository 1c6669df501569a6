"""For all tests and doctests: where the tests' own modules are, and the names that every example in a docstring may use."""

import builtins
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "tests"))

# examples in files that cannot be imported, or in functions that do nothing, without the extra fast
collect_ignore_glob = ([] if find_spec("numba") else ["minidl/kernels/cpu/*"]) + ([] if find_spec("threadpoolctl") else ["minidl/pool.py"])


@pytest.fixture(autouse=True, scope="session")
def _names_in_doctests(doctest_namespace):
    """np, minidl, F, and the functions by name, but for those that Python calls something else by."""
    import minidl
    from minidl import functions as F

    doctest_namespace.update({name: getattr(F, name) for name in F.__all__ if not hasattr(builtins, name)})
    doctest_namespace.update(np=np, minidl=minidl, F=F)
