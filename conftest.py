"""For all tests and doctests: where the tests' own modules are, and the names that every example in a docstring may use."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "tests"))


@pytest.fixture(autouse=True, scope="session")
def _names_in_doctests(doctest_namespace):
    import minidl.functions

    doctest_namespace.update(np=np, minidl=minidl, F=minidl.functions)
