"""What a step must compute at least: multiply-adds of a layer's products, without and with K-FAC.

With `rows` the minibatch times the positions of a layer's output, and a bias counted as one more input, SGD needs rows * in * out
forward, as many for the gradient of w and, but for the first layer, as many for that of x. K-FAC adds

    to every step                               in^2 out + in out^2             two products with the inverses
    to a step that renews A and G               rows (in^2 + out^2) / 2         they are symmetric: half of each is computed
        and looks at labels drawn anew          rows * in * out                 back through the layer, but for the first
    to a step that renews the inverses          (in^3 + out^3) / 2              Cholesky: a sixth to factor, a third to invert

so for square layers of width d and a minibatch of B a step that uses old inverses costs at least 1 + (2/3) d / B times SGD's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from minidl import nn


@dataclass(frozen=True)
class Layer:
    """inputs: a convolution's channels times its kernel, with one more for a bias."""

    path: str
    inputs: int
    outputs: int
    rows: int
    first: bool

    def counts(self, interval: int, drawn: bool = True) -> dict[str, float]:
        """Multiply-adds of a step of SGD, and what K-FAC adds to a step in the mean over an interval.

        drawn: whether a further backward pass is made, for labels drawn from the model's own prediction.

        >>> layer = Layer("a square one", 300, 300, 100, False)
        >>> counts = layer.counts(interval=10)
        >>> 1 + counts["preconditioning"] / counts["sgd"] == 1 + 2 / 3 * 300 / 100
        True
        """
        i, o, rows = self.inputs, self.outputs, self.rows
        return {"sgd": rows * i * o * (2 if self.first else 3), "preconditioning": i * i * o + i * o * o,
                "factors": rows * (i * i + o * o) / 2 / interval,
                "backward": rows * i * o / interval if drawn and not self.first else 0.0,
                "inverses": (i ** 3 + o ** 3) / 2 / interval}


def layers(model: Any, shape: tuple[int, ...], batch: int) -> list[Layer]:
    """The affine and convolution layers of a model for images of a shape, in the order in which they work."""
    parameters = dict(model.named_parameters())
    found: list[Layer] = []
    for row in nn.summary(model, shape).rows:
        w = parameters.get(f"{row.path}.w")
        if w is None or not row.multiply_adds:
            continue
        outputs = w.shape[0] if w.ndim == 4 else w.shape[1]
        inputs = w.size // outputs
        bias = f"{row.path}.b" in parameters
        found.append(Layer(row.path, inputs + bias, outputs, batch * (row.multiply_adds // (inputs * outputs)), first=not found))
    return found


def table(model: Any, shape: tuple[int, ...], batch: int, interval: int, drawn: bool = True) -> list[dict[str, Any]]:
    """A row a layer, and a last one for all of them."""
    rows = [asdict(layer) | layer.counts(interval, drawn) for layer in layers(model, shape, batch)]
    counted = ("sgd", "preconditioning", "factors", "backward", "inverses")
    return rows + [{"path": "all"} | {name: sum(row[name] for row in rows) for name in counted}]
