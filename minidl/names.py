"""Things that are known by a name, so that a command line or a config file can ask for one: models, optimizers; paths by a pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from minidl.errors import ArgumentError, DefinitionError, nearest

T = TypeVar("T")


def matching(pattern: str, paths: Iterable[str]) -> list[str]:
    """The paths that a pattern matches as a whole; "*.b" is also the b of a model that has it itself.

    >>> matching("*.b", ["b", "features.0.b", "features.0.w"])
    ['b', 'features.0.b']
    """
    return [path for path in paths if fnmatchcase(path, pattern) or fnmatchcase("." + path, pattern)]


class Names:
    """Things of one sort by name.

    package: the one whose `create` asks for them. article, noun: what errors call one of them, as in "a model".
    """

    def __init__(self, package: str, article: str, noun: str):
        self.package, self.article, self.noun = package, article, noun
        self.known: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Make what stands below known by a name. DefinitionError if something else has it."""
        def remember(thing: T) -> T:
            if self.known.setdefault(name, thing) is not thing:
                raise DefinitionError(f"{self.package}.register: there is {self.article} {self.noun} {name!r} already",
                                      hint="Choose another name.")
            return thing

        return remember

    def find(self, name: str) -> Any:
        """What has this name. ArgumentError, with the nearest, if nothing has."""
        if name not in self.known:
            raise ArgumentError(f"{self.package}.create: there is no {self.noun} {name!r}{nearest(name, self.known)}",
                                hint=f"There are {', '.join(sorted(self.known))}.")
        return self.known[name]

    def check_options(self, name: str, options: Iterable[str], own: Sequence[str]) -> None:
        """ArgumentError, with the nearest, for an option that the thing of this name does not have."""
        for option in options:
            if option not in own:
                raise ArgumentError(f"{self.package}.create: the {self.noun} {name} has no option {option!r}{nearest(option, own)}",
                                    hint=f"Its options are {', '.join(own)}." if own else "It has none.")
