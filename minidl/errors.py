"""The errors that minidl raises: one base class, a kind for each thing that can be wrong.

An error states the operation, what it got, what it wanted, and what to try; it adds the layer in which it happened. It is raised at
the public edge, before any number is crunched. Each kind is also the built-in error that NumPy and PyTorch users would catch.
Which layer is running is kept here too, because errors are what asks for it most; the layers themselves are `nn`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

# The layers that are being called right now, innermost first: (module, (module that called it, (..., None))).
# A ContextVar, because ranks may be threads. `nn.Module.__call__` pushes and pops.
running: ContextVar[tuple[Any, Any] | None] = ContextVar("running", default=None)


def layer_path(stack: tuple[Any, Any] | None) -> str:
    """Where a layer sits in the outermost model that was called, as 'features.2 (Conv2d)'; '' outside every layer.

    stack: a value that `running` had, now or when a node was made.
    """
    if stack is None:
        return ""
    name = type(stack[0]).__name__
    parts: list[str] = []
    while stack[1] is not None:
        parts.append(stack[1][0].name_of(stack[0]))
        stack = stack[1]
    path = ".".join(part for part in reversed(parts) if part)
    return f"{path} ({name})" if path else name


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest to one that is not known, in parentheses, for an error; nothing if none is near."""
    import difflib  # only when something is wrong already

    found = difflib.get_close_matches(name, list(known), 1)
    return f" (nearest: {found[0]!r})" if found else ""


class MinidlError(Exception):
    """The base of every error that minidl raises on purpose.

    message: the operation, then what is wrong: 'conv2d: x has 4 channels, w expects 3'.
    hint: what to try next, one sentence.
    facts: what was there, by name, in the words of the call; shown on one line.
    """

    def __init__(self, message: str, *, hint: str = "", **facts: Any):
        lines = [message]
        layer = layer_path(running.get())
        if layer:
            lines.append(f"in layer {layer}")
        if facts:
            lines.append("    ".join(f"{name}: {value}" for name, value in facts.items()))
        if hint:
            lines.append(hint)
        super().__init__("\n  ".join(lines))


class ShapeError(MinidlError, ValueError):
    """Shapes that do not fit together."""


class DtypeError(MinidlError, TypeError):
    """A number type that the operation cannot take, or two that differ where they must not."""


class DeviceError(MinidlError, RuntimeError):
    """Arrays of two devices in one operation, or a device that is not there."""


class GraphError(MinidlError, RuntimeError):
    """The computation graph cannot do what was asked: it was freed, changed, or never recorded."""


class NumericsError(MinidlError, ArithmeticError):
    """A NaN or an infinity where a finite number belongs."""


class MemoryShortage(MinidlError, MemoryError):
    """An array for which its device has no room: see shortage.py.

    asked: its bytes, 0 if that is not known. kept: bytes that the graph keeps, by layer. memory: of the device, see library.py.
    """

    asked = 0
    device = "cpu"
    memory: Any = None

    def __init__(self, message: str, *lines: str, hint: str = "", **facts: Any):
        super().__init__(message, **facts)
        self.said = "\n  ".join([str(self), *lines])               # by whom more is known it is told without the hint
        self.args = (f"{self.said}\n  {hint}" if hint else self.said,)
        self.kept: dict[str, int] = {}


class ArgumentError(MinidlError, ValueError):
    """An argument or option with a value that the operation does not know."""


class LabelError(MinidlError, IndexError):
    """A class id or index outside the range it points into."""


class DefinitionError(MinidlError, TypeError):
    """A Function, Module or other class of the user's that breaks a rule of the house."""


class DataError(MinidlError, ValueError):
    """A data set that cannot be read, is not what its name says, or does not fit the model."""


class CheckpointError(MinidlError, RuntimeError):
    """A checkpoint or weight file that cannot be written, read, or matched with the model."""


class ConfigError(MinidlError, ValueError):
    """An option of the command or a key of a config file that is unknown or wrong."""


class MissingExtra(MinidlError, ImportError):
    """A library that only some users need is not installed."""


class ExchangeError(MinidlError, RuntimeError):
    """Many processes that cannot work together: what they send does not fit, or one of them has gone."""


class RankLost(ExchangeError):
    """A process that takes part has died, or somebody has said so. With spare ranks the others go on; see parallel/elastic.py."""
