"""Pictures of what a network is and does, for notebooks, pages and files: needs the extra `viz` (Matplotlib, Graphviz).

Each function gives a Picture: shown by a notebook that ends a cell with it, written by `picture.save("name.svg")`. Drawing libraries are
imported when something is drawn.
"""

from minidl.pictures.picture import Picture, canvas

__all__ = ["Picture", "canvas"]
