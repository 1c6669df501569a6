"""What to type to have a run again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def commands(config: Mapping[str, Any]) -> dict[str, Any]:
    """The commands that repeat a run: "typed", as they were, one after the other, and "full", with every option spelled out, or None.

    A folder that was asked for is left out, since it is not empty any more; so is going on with a run that was only interrupted, which
    changes nothing. The folder of a run that was gone on with otherwise is called RUN.
    """
    typed = []
    for i, line in enumerate(config["commands"]):
        words, rest = words_of(line), []
        if i and not has_more(words):
            continue
        skip = False
        for place, word in enumerate(words):
            if skip:
                skip = False
            elif i == 0 and word == "--out":
                skip = True
            elif i == 0 and word.startswith("--out="):
                pass
            elif i and place and words[place - 1] == "--resume":
                rest.append("RUN")
            elif i and word.startswith("--resume="):
                rest.append("--resume=RUN")
            else:
                rest.append(word)
        typed.append(shlex.join(rest))
    return {"typed": typed, "full": config.get("repeat")}


def has_more(words: list[str]) -> bool:
    """Whether a command that goes on with a run has options besides."""
    start = next((i for i, word in enumerate(words) if word == "minidl.train" or word == "--"), len(words))
    rest = words[start + 1:]
    return any(not (word == "--resume" or word.startswith("--resume=") or (i and rest[i - 1] == "--resume")) for i, word in enumerate(rest))


def words_of(line: str) -> list[str]:
    """The words of a command; the line itself where a shell could not read it."""
    try:
        return shlex.split(line)
    except ValueError:
        return [line]
