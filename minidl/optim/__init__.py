"""How a model learns: update rules, schedules for their numbers, clipping and scaling of gradients."""

from minidl.optim.adam import Adam, AdamW
from minidl.optim.clip import clip_grad_norm, clip_grad_value
from minidl.optim.kfac import KFAC
from minidl.optim.optimizer import Optimizer, create, names, register
from minidl.optim.scaling import LossScale
from minidl.optim.schedule import constant, cosine, polynomial, step_decay, warm_up
from minidl.optim.sgd import SGD

__all__ = [
    "KFAC", "SGD", "Adam", "AdamW", "LossScale", "Optimizer", "clip_grad_norm", "clip_grad_value", "constant", "cosine", "create", "names",
    "polynomial", "register", "step_decay", "warm_up",
]
