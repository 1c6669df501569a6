"""For all tests and doctests: where the tests' own modules are, and the names that every example in a docstring may use."""

import builtins
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "tests"))


@pytest.fixture(autouse=True, scope="session")
def _names_in_doctests(doctest_namespace):
    """np, minidl, F, and the functions by name, but for those that Python calls something else by."""
    import minidl
    from minidl import functions as F

    doctest_namespace.update({name: getattr(F, name) for name in F.__all__ if not hasattr(builtins, name)})
    doctest_namespace.update(np=np, minidl=minidl, F=F)
