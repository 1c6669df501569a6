"""The names that operations have in errors and pictures."""

import importlib
import pkgutil

import pytest

from minidl import functions
from minidl.graph import Function


def operations():
    """Every operation that the families define."""
    for family in pkgutil.iter_modules(functions.__path__):
        module = importlib.import_module(f"minidl.functions.{family.name}")
        yield from (cls for cls in vars(module).values()
                    if isinstance(cls, type) and issubclass(cls, Function) and cls.__module__ == module.__name__)


@pytest.mark.parametrize("operation", list(operations()), ids=lambda cls: cls.__name__)
def test_an_operation_is_called_what_its_function_is_called(operation):
    """`relu`, not `re_lu`."""
    public = {name.replace("_", ""): name for name in functions.__all__}
    assert operation.name == public.get(operation.name.replace("_", ""), operation.name)
