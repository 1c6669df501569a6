"""A window that slides over an image: the geometry that convolution and pooling share. No arrays here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from minidl.errors import ArgumentError, ShapeError

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """How a kernel slides over images (N, C, H, W). Every field is a pair: (along the height, along the width).

    kernel: numbers under the window. stride: steps between two positions. padding: rows (columns) of padding on either side.
    dilation: distance between two numbers under the window; 1 is a window without gaps.
    ceil_mode: whether a last window may stick out beyond the padding; it must still begin inside the image or its left padding.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    def check(self, operation: str, size: Pair) -> None:
        """ArgumentError or ShapeError, in the operation's name, if this window cannot slide over an image of this size."""
        for name, least in (("kernel", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
            if min(getattr(self, name)) < least:
                raise ArgumentError(f"{operation}: {name} is {getattr(self, name)}, and must be at least {least}")
        if min(self.out(size)) < 1:
            raise ShapeError(f"{operation}: the window is larger than the image with its padding", image=f"{size} (H, W)",
                             window=self.span, padding=self.padding,
                             hint="Use a smaller kernel or dilation, more padding, or larger images.")

    @property
    def span(self) -> Pair:
        """Height and width from the first to the last number under the window."""
        return (self.dilation[0] * (self.kernel[0] - 1) + 1, self.dilation[1] * (self.kernel[1] - 1) + 1)

    def out(self, size: Pair) -> Pair:
        """How many positions the window has on an image of this size: the height and width of the output."""
        return self._positions(0, size[0]), self._positions(1, size[1])

    def _positions(self, axis: int, length: int) -> int:
        room = length + 2 * self.padding[axis] - self.span[axis]
        if not self.ceil_mode:
            return max(0, room // self.stride[axis] + 1)
        count = max(0, -(-room // self.stride[axis]) + 1)
        return count - 1 if (count - 1) * self.stride[axis] >= length + self.padding[axis] else count

    def padded(self, size: Pair) -> Pair:
        """The size of the image with its padding and with what a last window in ceil_mode adds at the lower and right edge."""
        return self._padded(0, size[0]), self._padded(1, size[1])

    def _padded(self, axis: int, length: int) -> int:
        reach = (self._positions(axis, length) - 1) * self.stride[axis] + self.span[axis]
        return max(reach, length + 2 * self.padding[axis])

    def offsets(self) -> Iterator[Pair]:
        """Where each number under the window lies, from the window's upper left corner, row by row."""
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                yield i * self.dilation[0], j * self.dilation[1]

    def first_inside(self, size: Pair) -> list[list[int]]:
        """(OH, OW): at each position, which number under the window is the first in the image and not in its padding; 0 if none is."""
        rows, columns = self._first_inside(0, size[0]), self._first_inside(1, size[1])
        return [[0 if row is None or column is None else row * self.kernel[1] + column for column in columns] for row in rows]

    def _first_inside(self, axis: int, length: int) -> list[int | None]:
        starts = [i * self.stride[axis] - self.padding[axis] for i in range(self._positions(axis, length))]
        firsts = [max(-(start // self.dilation[axis]), 0) for start in starts]
        return [first if first < self.kernel[axis] and start + first * self.dilation[axis] < length else None
                for start, first in zip(starts, firsts)]

    def under(self, offset: Pair, size: Pair) -> tuple[slice, slice]:
        """Rows and columns of the padded image that lie under one number of the window, over all its positions."""
        height, width = self.out(size)
        return (slice(offset[0], offset[0] + (height - 1) * self.stride[0] + 1, self.stride[0]),
                slice(offset[1], offset[1] + (width - 1) * self.stride[1] + 1, self.stride[1]))


def pair(operation: str, name: str, value: int | Pair) -> Pair:
    """An option as a pair: 2 means (2, 2). ArgumentError if it is neither an int nor two."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or not all(hasattr(n, "__index__") for n in both):
        raise ArgumentError(f"{operation}: {name} is {value!r}, and must be an int or a pair of ints: (height, width)")
    return int(both[0]), int(both[1])
