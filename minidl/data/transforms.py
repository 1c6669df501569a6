"""Transforms: what is done to a minibatch of images on its way to the model.

A transform has two halves: `draw` makes the random numbers, one row a sample; `apply` uses them and is deterministic. So the loader
can draw for a whole minibatch and give each process its rows, and the images are the same on one process as on many. Images come
and go as float32 (N, C, H, W); an argument is never written to. Those here take arrays of any device, with the same bits; draws are
always made on the CPU. Where images come from is the readers' business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from minidl import backend, kernels
from minidl.backend import Array
from minidl.data.dataset import Dataset
from minidl.errors import ArgumentError, DefinitionError, DtypeError, ShapeError


class Transform:
    """The base of all transforms; one of your own needs `apply`, and `draw` if it is random.

    device: whether `apply` takes arrays of a GPU too, x as well as `drawn`, as it does if it works with `xp = minidl.backend.of(x)`.
    Where a class does not say so of its own `apply`, images are transformed on the CPU.

    >>> class Invert(Transform):
    ...     def apply(self, x, drawn):
    ...         return 1 - x
    >>> Invert()(np.array([[[[0.25]]]], np.float32), np.random.default_rng(0))
    array([[[[0.75]]]], dtype=float32)
    """

    device: ClassVar[bool] = False

    def draw(self, generator: np.random.Generator, count: int) -> Any:
        """Random numbers for `count` samples: an array with that many rows, None, or a tuple of such."""
        return None

    def apply(self, x: Array, drawn: Any) -> Array:
        """The images x, one a row of `drawn`, transformed into a new array."""
        raise DefinitionError(f"{type(self).__name__} has no method apply", hint="Define apply(self, x, drawn): x in, a new array out.")

    def __call__(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self.apply(x, self.draw(generator, len(x)))


def rows(drawn: Any, part: slice) -> Any:
    """The rows of what a transform drew that belong to a part of the samples."""
    if isinstance(drawn, tuple):
        return tuple(rows(each, part) for each in drawn)
    return None if drawn is None else drawn[part]


def on_devices(transform: Any) -> bool:
    """Whether a transform takes arrays of any device. A class with an `apply` of its own says so itself."""
    if isinstance(transform, Compose) and type(transform).apply is Compose.apply:
        return all(map(on_devices, transform.transforms))
    for cls in type(transform).__mro__:
        if "device" in vars(cls) or "apply" in vars(cls):
            return bool(vars(cls).get("device", False))
    return False


class Compose(Transform):
    """Several transforms, one after the other.

    >>> Compose(RandomCrop(4), HorizontalFlip())
    Compose(RandomCrop(padding=4, size=None, fill=0.0), HorizontalFlip(p=0.5))
    """

    def __init__(self, *transforms: Transform):
        self.transforms = transforms

    def draw(self, generator: np.random.Generator, count: int) -> tuple:
        return tuple(transform.draw(generator, count) for transform in self.transforms)

    def apply(self, x: Array, drawn: tuple) -> Array:
        for transform, each in zip(self.transforms, drawn):
            x = transform.apply(x, each)
        return x

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


@dataclass(frozen=True)
class Normalise(Transform):
    """(x - mean) / std, channel by channel, so that each channel has mean 0 and standard deviation 1.

    mean, std: one number a channel, or one for all; in the units of x, that is, of images in [0, 1]. x: (N, C, H, W), or vectors
    (N, D), where each of the D is a channel. Put it last: the others fill with the colour of paper, not of the mean.
    ArgumentError for a std that is not above 0, ShapeError for another number of channels.

    >>> Normalise(mean=0.5, std=0.25)(np.array([[1.0, 0.5]], np.float32), np.random.default_rng(0))
    array([[2., 0.]], dtype=float32)
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]
    device: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            numbers = tuple(float(number) for number in np.ravel(getattr(self, name)))
            if not numbers or not all(math.isfinite(number) for number in numbers):
                raise ArgumentError(f"Normalise: {name} is {getattr(self, name)}", hint="Give one finite number a channel.")
            object.__setattr__(self, name, numbers)
        if min(np.ravel(self.std)) <= 0:
            raise ArgumentError(f"Normalise: std is {self.std}, not above 0", hint="Give a channel that never changes the std 1.")

    @classmethod
    def of(cls, data: Dataset) -> Normalise:
        """The Normalise for the mean and standard deviation of a data set, to six digits; a channel that never changes gets std 1.

        >>> Normalise.of(Dataset(np.array([[0, 3], [2, 3]]), np.array([0, 1])))
        Normalise(mean=(1.0, 3.0), std=(1.0, 1.0))
        """
        first, second = 0.0, 0.0                # the means of x and of x^2: in float64, a piece at a time
        axes = (0, *range(2, data.x.ndim))
        for start in range(0, len(data), 1024):
            x = data[start:start + 1024][0].astype(np.float64)
            first = first + x.mean(axes) * len(x) / len(data)
            second = second + (x * x).mean(axes) * len(x) / len(data)
        std = np.sqrt(np.maximum(second - np.square(first), 0)).round(6)
        return cls(np.round(first, 6).tolist(), np.where(std > 0, std, 1).tolist())

    def apply(self, x: Array, drawn: None) -> Array:
        if x.dtype.kind != "f":
            raise DtypeError(f"Normalise: x is {x.dtype}", hint="Give images as float32 in [0, 1], as a Dataset does: x / 255 for bytes.")
        mean, std = np.ravel(self.mean), np.ravel(self.std)
        for name, numbers in (("mean", mean), ("std", std)):
            if len(numbers) not in (1, x.shape[1]):
                raise ShapeError(f"Normalise: x has {x.shape[1]} channels, {name} has {len(numbers)}", x=x.shape,
                                 hint="Normalise.of(data) measures the numbers that fit.")
        axes, device = (-1,) + (1,) * (x.ndim - 2), backend.device_of(x)
        y = x - constant(tuple(mean.tolist()), x.dtype, device).reshape(axes)
        y /= constant(tuple(std.tolist()), x.dtype, device).reshape(axes)
        return y


@dataclass(frozen=True)
class HorizontalFlip(Transform):
    """Each image mirrored left to right with probability p.

    p: 0 to 1. Not for digits and letters, whose mirror images are something else. ArgumentError for another p.

    >>> HorizontalFlip(p=1)(np.array([[[[1, 2, 3]]]], np.float32), np.random.default_rng(0))
    array([[[[3., 2., 1.]]]], dtype=float32)
    """

    p: float = 0.5
    device: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ArgumentError(f"HorizontalFlip: p is {self.p}", hint="p is a probability, from 0 to 1.")

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return generator.random(count) < self.p

    def apply(self, x: Array, drawn: Array) -> Array:
        images(x, "HorizontalFlip")
        xp = backend.of(x)
        if xp is not np:                        # whose host would have to wait to be told how many they are
            return xp.where(drawn[:, None, None, None], x[:, :, :, ::-1], x)
        y = x.copy()
        y[drawn] = x[drawn, :, :, ::-1]
        return y


@dataclass(frozen=True)
class Shift(Transform):
    """Each image moved by up to `pixels` up or down and, independently, left or right; all distances are equally likely.

    pixels: 0 or more. fill: what enters at the other side, in the units of x (0 is black). ArgumentError for another `pixels`.

    >>> Shift(1).apply(np.array([[[[1, 2], [3, 4]]]], np.float32), np.array([[1, 0]]))      # one down
    array([[[[0., 0.],
             [1., 2.]]]], dtype=float32)
    """

    pixels: int
    fill: float = 0.0
    device: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("Shift", "pixels", self.pixels, 0)

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return generator.integers(-self.pixels, self.pixels, (count, 2), endpoint=True)      # rows down, columns right

    def apply(self, x: Array, drawn: Array) -> Array:
        images(x, "Shift")
        return kernels.windows(x, self.pixels - drawn, x.shape[2:], self.pixels, self.fill)


@dataclass(frozen=True)
class RandomCrop(Transform):
    """A window at a random place of each image, after a border of `padding` pixels was put around it.

    padding: pixels on each side. size: height and width of the window, (OH, OW), or one number for both; None keeps the size of the image.
    fill: the border, in the units of x (0 is black). ArgumentError for a negative padding, or a window larger than image and border.
    He et al., "Deep residual learning", CVPR 2016, section 4.2.

    >>> RandomCrop(1, size=2)(np.ones((5, 3, 8, 8), np.float32), np.random.default_rng(0)).shape
    (5, 3, 2, 2)
    """

    padding: int
    size: int | tuple[int, int] | None = None
    fill: float = 0.0
    device: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("RandomCrop", "padding", self.padding, 0)
        sides = [] if self.size is None else np.ravel(self.size).tolist()
        for side in sides:
            whole("RandomCrop", "size", side, 1)
        if len(sides) > 2:
            raise ArgumentError(f"RandomCrop: size is {self.size}", hint="Give one number, or height and width.")

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return generator.random((count, 2))         # where between first and last place: the places are not known before the image is

    def apply(self, x: Array, drawn: Array) -> Array:
        images(x, "RandomCrop")
        size = x.shape[2:] if self.size is None else tuple(np.broadcast_to(self.size, 2).tolist())
        places = np.array(x.shape[2:]) + 2 * self.padding - size + 1
        if places.min() < 1:
            raise ArgumentError(f"RandomCrop: a window of {size[0]} x {size[1]} is larger than the image with its border", x=x.shape,
                                padding=self.padding, hint="Make size smaller, or padding larger.")
        corners = (drawn * constant(tuple(places.tolist()), drawn.dtype, backend.device_of(x))).astype(np.int64)
        return kernels.windows(x, corners, size, self.padding, self.fill)


@cache
def constant(numbers: tuple[float, ...], dtype: np.dtype, device: str) -> Array:
    """A few numbers as an array on a device, brought there once."""
    return backend.asarray(np.array(numbers, dtype), device)


def images(x: Array, who: str) -> None:
    """ShapeError unless x has the four axes of images."""
    if x.ndim != 4:
        raise ShapeError(f"{who}: x has {x.ndim} axes, images have four", x=x.shape, expected="(N, C, H, W)")


def whole(who: str, name: str, value: Any, least: int) -> int:
    """The value as an int; ArgumentError unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ArgumentError(f"{who}: {name} is {value!r}", hint=f"Give a whole number, {least} or more.")
    return int(value)
