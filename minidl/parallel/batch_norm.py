"""Batch normalization over all ranks: a model's layers take the mean and the variance of the whole minibatch.

Mathematics and gradients are those of one process (functions/normalization.py), which asks here for each sum over the batch: in a
training pass two forward and one backward, of a few numbers a channel. Every rank must go through the model equally often, with an empty
part too. Without this each rank normalizes by its own part.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import backend
from minidl.graph import Function
from minidl.nn import BatchNorm, Module
from minidl.parallel.communicator import Communicator


class SumOverRanks(Function):
    """The sum of all ranks' x, an array or Tensor of the same shape everywhere, added from rank 0 on. All ranks call it together."""

    communicator: Any

    def forward(self, x):
        parts = self.communicator.allgather(np.ascontiguousarray(backend.to_numpy(x)))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return backend.asarray(total, backend.device_of(x))

    # each rank's loss has this sum in it, and the loss of the whole is their sum: gx = the sum of all ranks' gy
    def grad_x(self, gy):
        return SumOverRanks(self.communicator)(gy)

    @property
    def leads(self) -> bool:
        """Whether this is the rank that notes the running statistics, which are the same everywhere."""
        return self.communicator.rank == 0


def synchronize(model: Module, communicator: Communicator | None) -> int:
    """Have the batch normalization layers of a model work on the batch of all ranks; gives how many there are.

    communicator: theirs alone, a duplicate. None: on this rank's part again.
    """
    layers = [module for _, module in model.named_modules() if isinstance(module, BatchNorm)]
    for layer in layers:
        layer.reduce = None if communicator is None else SumOverRanks(communicator)
    return len(layers)
