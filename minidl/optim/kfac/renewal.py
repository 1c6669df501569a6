"""What blocks do together in a step: take in what a minibatch has shown, renew what they divide by, divide.

Each of these wants to know something of numbers that lie where the model lies: whether they are finite, how far an average has moved,
whether a factor could be inverted. On a device such a look waits for everything before it. So all blocks make their flags first, and
there is one read for all of them. What a single block does is in blocks.py and its kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from minidl.backend import Array
from minidl.optim.kfac.blocks import Block, Gradients, wide
from minidl.optim.kfac.inverses import Report, diagonals, inverted
from minidl.optim.kfac.reads import finite, truths
from minidl.tensor import Tensor


def take_in(blocks: Sequence[Block], decay: float, step: int) -> None:
    """Take the sums of these blocks into their averages."""
    sound = asked([{name: finite(diagonals(x)) for name, x in block.sums.items()} for block in blocks])
    moved = [each for block, found in zip(blocks, sound) for each in block.absorb(found, decay, step)]
    for (average, _), steady in zip(moved, truths(flag for _, flag in moved)):
        average.adapt(steady, step)


def renew(blocks: Sequence[Block], damping: float, report: Report) -> None:
    """Renew what these blocks divide by."""
    items = [(block, side, matrix) for block in blocks for side, matrix in block.to_invert(damping).items()]
    found = inverted([(block.side_names[side], *matrix) for block, side, matrix in items], report)
    doubts = []
    for block, sound in zip(blocks, asked([block.unsure() for block in blocks])):
        inverses = {side: inverse for (owner, side, _), inverse in zip(items, found) if owner is block}
        doubts += [block.renew(inverses, sound, damping)]
    left = [doubt for doubt in doubts if doubt is not None]
    for (_, text), true in zip(left, truths(flag for flag, _ in left)):
        if true:
            report(text)


def refine(blocks: Sequence[Block], term: float, decay: float, total: Callable[[list[Array]], list[Array]] | None) -> None:
    """What can only be learned from the same examples once there is something to divide by: EKFAC's scales. What is not finite is left out.

    term: of the step's first part. total: sums over all ranks, if there are several.
    """
    squares = [block.squares(term) for block in blocks]
    if squares and total is not None:
        squares = total(squares)
    for block, each, sound in zip(blocks, squares, truths(finite(each) for each in squares)):
        if sound:
            block.refine(each, decay)


def divided(blocks: Collection[Block], parameters: Mapping[str, Tensor], damping: float) -> dict[str, Array]:
    """The gradients of the parameters divided by F + damping, by path, where there is a block that can."""
    due: list[tuple[Block, Gradients]] = []
    for block in blocks:
        grads = {role: parameters[path].grad for role, path in block.paths.items() if parameters[path].requires_grad}
        if block.damping is not None and len(grads) == len(block.paths) and all(grad is not None for grad in grads.values()):
            due.append((block, {role: wide(grad.data) for role, grad in grads.items()}))        # type: ignore[union-attr]
    trusted = asked([{} if (flag := block.trusts(gradients)) is None else {"trusted": flag} for block, gradients in due])
    found: dict[str, Array] = {}
    for (block, gradients), known in zip(due, trusted):
        u = block.directions(gradients, damping, **known)
        if u is not None:
            found |= {path: u[role] for role, path in block.paths.items()}
    return found


def asked(flags: Sequence[Mapping[str, Array]]) -> list[dict[str, bool]]:
    """Which flags are set, under the same names: one read for all."""
    answers = iter(truths(flag for each in flags for flag in each.values()))
    return [{name: next(answers) for name in each} for each in flags]
