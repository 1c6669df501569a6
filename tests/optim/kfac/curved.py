"""Small networks, targets and the plainest statistics, for the tests of K-FAC."""

from itertools import pairwise

import numpy as np

from minidl import fisher, nn
from minidl import functions as F
from minidl.optim import KFAC

LOSSES = {"categorical": F.softmax_cross_entropy, "bernoulli": F.binary_cross_entropy_with_logits, "gaussian": F.mse}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def affine(inputs, outputs, seed=0, **options):
    layer = nn.Affine(inputs, outputs, generator=seed, dtype="float64", **options)
    if layer.b is not None:
        layer.b.data = numbers(outputs, seed=seed + 100) * 0.1
    return layer


def conv(*args, seed=0, **options):
    layer = nn.Conv2d(*args, generator=seed, dtype="float64", **options)
    if layer.b is not None:
        layer.b.data = numbers(len(layer.b.data), seed=seed + 100) * 0.1
    return layer


def mlp(activation=nn.Tanh, sizes=(3, 4, 3)):
    """Affine layers with activations between them; none for a linear network."""
    layers = []
    for k, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers += [activation()] if k and activation else []
        layers += [affine(inputs, outputs, seed=k)]
    return nn.Sequential(*layers)


def conv_net(activation=nn.Tanh, **options):
    return nn.Sequential(conv(2, 4, 3, **options), activation(), nn.Flatten(), affine(16, 3, seed=1))       # images of 4 x 4


def targets(kind, shape, seed=3):
    """What the loss of a kind takes, for outputs of a shape."""
    random = np.random.default_rng(seed)
    if kind == "categorical":
        return random.integers(shape[1], size=(shape[0], *shape[2:]))
    return random.integers(2, size=shape) if kind == "bernoulli" else random.standard_normal(shape)


def plain_kfac(model, **options):
    """K-FAC with nothing around it: no damping, no momentum, no clip, the exact Fisher matrix."""
    return KFAC(model, **{"lr": 1.0, "momentum": 0, "damping": 0, "kl_clip": None, "fisher": "exact"} | options)


def shown(model, x, kind="gaussian", y=None, frozen=(), **options):
    """A KFAC that has seen one backward pass and taken it in. frozen: paths."""
    optimizer = plain_kfac(model, **{"damping": 1e-3} | options)
    for path in frozen:
        optimizer.parameters[path].requires_grad = False
    z = model(x)
    LOSSES[kind](z, targets(kind, z.shape) if y is None else y).backward()
    optimizer.prepare()
    return optimizer


def block_of(model, x, kind, block):
    """The true block of the Fisher matrix that belongs to a block of KFAC."""
    return ordered(model, block, fisher(model, x, kind, parameters=list(block.paths.values())))


def ordered(model, block, matrix):
    """Rows and columns of a matrix in the order of `named_parameters` brought into that of the block's roles."""
    sizes = {path: p.size for path, p in model.named_parameters() if path in block.paths.values()}
    ends = np.cumsum([0, *sizes.values()])
    places = {path: np.arange(ends[k], ends[k + 1]) for k, path in enumerate(sizes)}
    order = np.concatenate([places[block.paths[role]] for role in block.roles if role in block.paths])
    return matrix[np.ix_(order, order)]


def flat(block, arrays):
    """Arrays by path as one vector, in the order of the block's roles."""
    return np.concatenate([np.ravel(arrays[block.paths[role]]) for role in block.roles if role in block.paths])


def gradients(optimizer):
    return {path: p.grad.data for path, p in optimizer.parameters.items() if p.grad is not None}


def error(found, wanted):
    """The relative distance of two matrices, by the Frobenius norm."""
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
