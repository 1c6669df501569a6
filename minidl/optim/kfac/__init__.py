"""K-FAC: natural gradient, with the Fisher matrix of each layer as the Kronecker product of two small matrices.

The Fisher matrix F measures how much a change of the weights changes what the model predicts. Its inverse turns the gradient into the
direction in which the loss falls fastest for a given change of the predictions, however the weights are scaled or mixed: the natural
gradient (Amari, Neural Computation 1998). For n weights F has n^2 numbers. K-FAC keeps the block of each layer, and of that the
Kronecker product of two second moments: A of the layer's inputs, G of the gradients at its outputs (Martens and Grosse,
arXiv:1503.05671). In the order in which one reads:

    kfac.py             the optimizer: a step from beginning to end
    statistics.py       which passes are run, and which block sees what
    scale.py            what a loss weighs: the only place that knows of means and sums
    blocks.py           what is common to all blocks;  averages.py: their running averages
    kronecker.py        A (x) G, in mathematics;  layers.py: affine layers, convolutions, embeddings
    moments.py          second moments of rows;  units.py: normalization layers
    division.py         the three ways to divide by A (x) G + damping;  inverses.py: the linear algebra under them,
                        positive.py: on a GPU
    renewal.py          what all blocks do together in a step;  reads.py: with few looks at what lies on a device
    levenberg.py        damping that finds its own size
    places.py           which block a parameter belongs to;  ranks.py: many processes that see one minibatch
"""

from minidl.optim.kfac.kfac import KFAC

__all__ = ["KFAC"]
