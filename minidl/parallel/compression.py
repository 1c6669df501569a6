"""Compression: what a codec leaves out is kept, and sent with what comes next.

So a small gradient comes late, and not never. Feedback does this with gradients, or sums of them; Changes with weights on their way down,
of which only the difference is sent. The codecs are in codecs.py; which run is sent when, and to whom, is the exchange's business.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.errors import ShapeError
from minidl.parallel.codecs import Codec, Scratch, codec

__all__ = ["Changes", "Codec", "Feedback", "codec"]


class Feedback:
    """Error feedback: what lossy codecs left out of a flat buffer of `size` numbers, added to what is sent next.

    What an encode leaves takes effect at `commit`; until then the step may be made again, from the same numbers to the same bytes. Ranges
    are encoded in any order, by one thread at a time; commit and rollback come when none is being encoded.
    on: False sends without it, to be compared with. Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019.
    """

    def __init__(self, size: int, dtype: Any = np.float32, on: bool = True):
        self.size, self.dtype, self.on = size, np.dtype(dtype), on
        self.kept: np.ndarray | None = None
        self.next: np.ndarray | None = None
        self.pending: list[slice] = []
        self.scratch = Scratch()

    @property
    def residual(self) -> np.ndarray | None:
        """What has been left out so far (size,), for a checkpoint; None if nothing ever was. May be set."""
        return self.kept

    @residual.setter
    def residual(self, value: np.ndarray | None) -> None:
        if value is not None and value.shape != (self.size,):
            raise ShapeError(f"Feedback: a buffer of {self.size} numbers cannot have a residual of shape {value.shape}")
        self.rollback()
        self.kept = None if value is None else np.array(value, self.dtype)

    def encode(self, codec: Codec, x: np.ndarray, where: slice, out: np.ndarray | None = None) -> np.ndarray:
        """The parcel of x (n,), and of what was left out in this range of the buffer. out: as in `Codec.encode`."""
        if not self.on or (self.kept is None and not codec.lossy):
            return codec.encode(x, out)
        if self.kept is not None:
            x = np.add(x, self.kept[where], out=self.scratch("sum", len(x), self.dtype))
        parcel = codec.encode(x, np.empty(codec.room(len(x), x.dtype), np.uint8) if out is None else out)      # not the sum itself
        if self.next is None:
            self.next = np.empty(self.size, self.dtype)
        codec.left(x, parcel, self.next[where])
        self.pending.append(where)
        return parcel

    def commit(self) -> None:
        """What was encoded is sent for good: from now on, what it left counts."""
        if self.pending and self.next is not None:
            if self.kept is None:
                self.kept = np.zeros(self.size, self.dtype)
            for where in self.pending:
                self.kept[where] = self.next[where]
        self.pending.clear()

    def rollback(self) -> None:
        """Forget what was encoded since the last commit."""
        self.pending.clear()


class Changes(Feedback):
    """Weights on their way to ranks that have older ones: a lossy codec carries the difference, and what it left out of earlier ones.

    Whoever sends a parcel applies it too, in place of the new weights, so that all have the same bits. Under `none` that is the new ones.
    """

    def encode(self, codec: Codec, new: np.ndarray, known: np.ndarray, where: slice, out: np.ndarray | None = None) -> np.ndarray:
        """The parcel that brings the weights `known` (n,) of a range of the buffer to about `new`."""
        if not codec.lossy:
            return codec.encode(new, out)
        return super().encode(codec, np.subtract(new, known, out=self.scratch("change", len(new), self.dtype)), where, out)

    @staticmethod
    def apply(codec: Codec, parcel: np.ndarray, known: np.ndarray) -> None:
        """Bring the weights `known` to what a parcel says, in place."""
        if codec.lossy:
            codec.add(parcel, known)
        else:
            codec.decode(parcel, known)
