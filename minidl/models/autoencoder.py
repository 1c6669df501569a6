"""A deep autoencoder, the classical test of an optimizer on a hard problem. Hinton and Salakhutdinov, Science 2006."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from minidl import backend, nn
from minidl.models.registry import register, size_of, widths_of
from minidl.nn.init import Source, xavier_normal
from minidl.nn.options import Init


@register("autoencoder")
class Autoencoder(nn.Module):
    """(N, ...) to (N, numbers of one example): down to a code of few numbers and back up, with tanh between the affine layers.

    The code is linear, and so is the output: logits, for the Bernoulli cross-entropy with the flattened input, whose numbers lie in
    0 ... 1. widths: of the layers down to the code; the way back mirrors them. init: Xavier's, because of the tanh.
    """

    reconstructs = True             # what it learns is its input: the training command asks

    def __init__(self, input_shape: tuple[int, ...], widths: tuple[int, ...] = (1000, 500, 250, 30), init: Init = xavier_normal,
                 generator: Source = None, dtype: Any = "float32"):
        rng = backend.generator(generator)
        down = (size_of("autoencoder", input_shape), *widths_of("autoencoder", widths))
        self.encoder = nn.Sequential(nn.Flatten(), *_layers(down, init, rng, dtype))
        self.decoder = nn.Sequential(*_layers(down[::-1], init, rng, dtype))

    def forward(self, x: Any) -> Any:
        return self.decoder(self.encoder(x))


def _layers(widths: tuple[int, ...], init: Init, generator: Source, dtype: Any) -> list[nn.Module]:
    """Affine layers from width to width, with tanh on all but the last."""
    last = len(widths) - 2
    return [nn.Affine(inputs, outputs, activation=None if i == last else "tanh", init=init, generator=generator, dtype=dtype)
            for i, (inputs, outputs) in enumerate(pairwise(widths))]
