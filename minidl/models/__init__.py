"""Networks by name, one file each: `models.create("lenet", input_shape=(1, 28, 28), classes=10, generator=0)`."""

from minidl.models.autoencoder import Autoencoder
from minidl.models.cnn import CNN
from minidl.models.lenet import LeNet
from minidl.models.mlp import MLP
from minidl.models.registry import create, names, register
from minidl.models.resnet import ResNet18

__all__ = ["CNN", "MLP", "Autoencoder", "LeNet", "ResNet18", "create", "names", "register"]
