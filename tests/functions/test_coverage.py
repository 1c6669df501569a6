"""The suite is complete by construction: a public function without a case fails it."""

import importlib
import inspect
from pathlib import Path

import pytest

from cases import FunctionCase
from minidl import functions

PUBLIC = [name for name in functions.__all__ if inspect.isfunction(getattr(functions, name))]


def every_case(kind=FunctionCase):
    for case in kind.__subclasses__():
        yield case
        yield from every_case(case)


@pytest.fixture(scope="module")
def covered():
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(path.stem)
    return {name for case in every_case() if case.__module__ != "cases" for name in case.functions}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_function_has_a_case(name, covered):
    assert name in covered, f'write a FunctionCase with functions = ("{name}",) in tests/functions'


def test_every_case_names_functions_that_exist(covered):
    assert covered <= set(PUBLIC)
