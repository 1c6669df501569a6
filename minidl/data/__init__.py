"""What is learned from: data sets, the loader that cuts them into minibatches, and transforms on the way.

    load            a data set by its name, or your own         catalogue.py, and a reader a format: idx, cifar, npz, folder
    Dataset         samples and labels side by side             dataset.py
    Loader          minibatches, shuffled, shared, prefetched   loader.py, prefetch.py
    Normalise, ...  what is done to a minibatch                 transforms.py
    Feed            minibatches on a GPU, copied in time        device.py
    read_image      one image, made to fit a model              images.py

Importing this imports NumPy only; pooch and Pillow (pip install 'minidl[data]') are imported where something is downloaded or
an image file is read.
"""

from minidl.data.catalogue import load
from minidl.data.dataset import Dataset
from minidl.data.images import read_image
from minidl.data.loader import Loader
from minidl.data.transforms import Compose, HorizontalFlip, Normalise, RandomCrop, Shift, Transform

__all__ = ["Compose", "Dataset", "HorizontalFlip", "Loader", "Normalise", "RandomCrop", "Shift", "Transform", "load", "read_image"]
