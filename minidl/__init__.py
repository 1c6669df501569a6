"""minidl: a deep-learning framework small enough to be read in an afternoon."""

__version__ = "0.1.0"
