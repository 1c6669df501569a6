"""Models by name, so that a command line or a config file can ask for one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

from minidl.errors import ArgumentError
from minidl.names import Names
from minidl.nn.init import Source
from minidl.nn.module import Module

Build = TypeVar("Build", bound=Callable[..., Module])

_models = Names("models", "a", "model")


def register(name: str) -> Callable[[Build], Build]:
    """Make a model known by a name: `@register("tiny")` over a Module class or a function that gives a Module.

    It is called with `input_shape`, `generator`, with `classes` if it has such an argument, and with the options that are its own.
    """
    return _models.register(name)


def names() -> list[str]:
    """The names that `create` knows, in alphabetical order."""
    return sorted(_models.known)


def create(name: str, *, input_shape: tuple[int, ...], classes: int | None = None, generator: Source = None, **options: Any) -> Module:
    """A fresh model.

    name: one of `names()`. input_shape: of one example, (C, H, W). classes: how many outputs a classifier has; a model that has no
    classes, such as the autoencoder, does not look at it. generator: draws the weights: a NumPy Generator, a seed, or None.
    options: the model's own, such as widths=(100, 50). ArgumentError for a name or an option that is not known, with the nearest.

    >>> from minidl import models
    >>> model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0)
    >>> model(np.zeros((32, 1, 8, 8), np.float32)).shape
    (32, 10)
    """
    build = _models.find(name)
    takes = inspect.signature(build).parameters
    _models.check_options(name, options, [option for option in takes if option not in ("input_shape", "classes", "generator")])
    if "classes" in takes:
        if classes is None:
            raise ArgumentError(f"models.create: {name} is a classifier and must be told how many classes there are",
                                hint="Give classes=10, for ten kinds of images.")
        options["classes"] = classes
    return build(input_shape=input_shape, generator=generator, **options)


def size_of(model: str, input_shape: Any) -> int:
    """How many numbers one example has. ArgumentError if input_shape is no shape."""
    if not isinstance(input_shape, tuple | list) or not all(hasattr(n, "__index__") and n > 0 for n in input_shape):
        raise ArgumentError(f"{model}: input_shape is {input_shape!r}, and must be the shape of one example, such as (1, 28, 28)")
    return math.prod(input_shape)


def image_shape(model: str, input_shape: Any, smallest: int = 1) -> tuple[int, int, int]:
    """(C, H, W), checked. ArgumentError for another number of axes, and for images too small for a model that halves them."""
    shape = tuple(input_shape) if isinstance(input_shape, tuple | list) else input_shape
    if not isinstance(shape, tuple) or len(shape) != 3 or not all(hasattr(n, "__index__") and n > 0 for n in shape):
        raise ArgumentError(f"{model}: input_shape is {input_shape!r}, and must be (C, H, W), the shape of one image")
    if min(shape[1:]) < smallest:
        raise ArgumentError(f"{model}: images of {shape[1]} x {shape[2]} are too small, nothing would be left of them after pooling",
                            hint=f"Give images of at least {smallest} x {smallest}, or use another model, such as mlp.")
    return shape


def widths_of(model: str, widths: Any) -> tuple[int, ...]:
    """Layer widths, checked. ArgumentError if there is none, or one that is no int of at least 1."""
    given = tuple(widths) if isinstance(widths, tuple | list) else ()
    if not given or not all(hasattr(n, "__index__") and not isinstance(n, bool) and n > 0 for n in given):
        raise ArgumentError(f"{model}: widths is {widths!r}, and must be numbers of units, such as (512, 256)")
    return tuple(int(n) for n in given)
