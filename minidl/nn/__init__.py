"""Functions with parameters: the layers, and what a model is built of."""

from minidl.nn import init
from minidl.nn.containers import Sequential
from minidl.nn.layers import Affine, BatchNorm, Conv2d, ConvTranspose2d, Embedding, LayerNorm
from minidl.nn.module import Module, Parameter
from minidl.nn.plain import (
    ELU,
    GELU,
    AvgPool2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    LogSoftmax,
    MaxPool2d,
    ReLU,
    Sigmoid,
    Softmax,
    Softplus,
    Tanh,
)
from minidl.nn.summary import Summary, summary

__all__ = [
    "ELU", "GELU", "Affine", "AvgPool2d", "BatchNorm", "Conv2d", "ConvTranspose2d", "Dropout", "Embedding", "Flatten",
    "GlobalAvgPool2d", "LayerNorm", "LeakyReLU", "LogSoftmax", "MaxPool2d", "Module", "Parameter", "ReLU", "Sequential", "Sigmoid",
    "Softmax", "Softplus", "Summary", "Tanh", "init", "summary",
]
