"""Pictures of what a network is and does, for notebooks, pages and files: needs the extra `viz` (Matplotlib, Graphviz).

Each function gives a Picture: shown by a notebook that ends a cell with it, written by `picture.save("name.svg")`. Drawing libraries are
imported when something is drawn.
"""

from minidl.pictures.convolution import patches, pooling, window
from minidl.pictures.curves import curves, learning_curves
from minidl.pictures.feature_maps import feature_maps
from minidl.pictures.graph import backward_steps, draw
from minidl.pictures.im2col import im2col_matrix
from minidl.pictures.images import confusion, filters, images, mistakes
from minidl.pictures.landscapes import landscape
from minidl.pictures.matrices import matrices
from minidl.pictures.picture import Picture, canvas
from minidl.pictures.scaling import bars, scaling
from minidl.pictures.timeline import timeline

__all__ = ["Picture", "backward_steps", "bars", "canvas", "confusion", "curves", "draw", "feature_maps", "filters", "im2col_matrix",
           "images", "landscape", "learning_curves", "matrices", "mistakes", "patches", "pooling", "scaling", "timeline",
           "window"]
