"""Functions with parameters: layers, and what a model is built of."""

from minidl.nn import init
from minidl.nn.module import Module, Parameter

__all__ = ["Module", "Parameter", "init"]
