"""minidl: a deep-learning framework small enough to be read in an afternoon.

    x, w            arrays, from NumPy or CuPy          minidl.Tensor(w, requires_grad=True)
    functions       what is computed, with its gradient minidl.functions
    nn, models      functions with parameters           minidl.nn.Affine, minidl.models.create("lenet")
    optim, data     how and from what it learns         minidl.optim.SGD, minidl.data.load("digits")
    curvature       the Fisher matrix, and its products     minidl.fisher
    loop            fit and evaluate: the training loop     minidl.loop.fit
    pictures        graphs, filters, curves to look at      minidl.pictures.draw(loss)
    testing         gradients held against numbers          minidl.testing.gradcheck
    profile         where time and memory go                with minidl.profile() as p: ...
    threads         how many work at a time                 with minidl.threads(4): ...
    At the shell: python -m minidl.train, python -m minidl.predict
"""

from importlib import import_module
from typing import Any

from minidl import data, functions, models, nn, optim
from minidl.autograd import Function, Observer, check_numerics, check_saved, grad, hvp, no_grad
from minidl.curvature import fisher, fisher_product, ggn_product
from minidl.pool import threads
from minidl.profiling import profile
from minidl.tensor import Tensor

__version__ = "0.1.0"
__all__ = ["Function", "Observer", "Tensor", "check_numerics", "check_saved", "data", "fisher", "fisher_product", "functions",
           "ggn_product", "grad", "hvp", "models", "nn", "no_grad", "optim", "profile", "threads"]

LATER = ("exercises", "loop", "parallel", "pictures", "testing")        # modules that are imported when they are first asked for


def __getattr__(name: str) -> Any:
    if name in LATER:
        return import_module(f"minidl.{name}")
    raise AttributeError(f"module 'minidl' has no attribute {name!r}")
