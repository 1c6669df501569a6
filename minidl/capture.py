"""Capture: training steps of fixed shapes, recorded once as CUDA graphs and replayed, so that small networks are not bound by launches.

The first steps of a shape are ordinary ones: they compile kernels and make the optimizer's memory. The next one is recorded, which
computes nothing, and then replayed for its own minibatch, as all that follow. A replayed step gives the same bits as an ordinary one:

    what changes from step to step (learning rates, what dropout hashes) goes to the device before each replay: see recording.py;
    whether the loss and the gradient are finite is decided on the device, before any weight changes. Where they are not, nothing has
    changed, and the minibatch is done again the ordinary way, which says what is wrong;
    what a step counts on the host is counted after the replay.

Minibatches of other shapes (the last of an epoch) have graphs of their own, a few at the most. All graphs share a memory pool: none of
them needs after a replay what another may write to. What the model's Python code decides is decided once, while the step is recorded:
where a weight, a switch or a number of a layer is another than then, the step is recorded anew.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError, GraphError, MinidlError
from minidl.graph import Function
from minidl.kernels.choice import twins_allowed
from minidl.kernels.cuda import report
from minidl.modes import HOME, mode, switched
from minidl.nn import Module
from minidl.nn.part import Part
from minidl.nn.streams import generators
from minidl.parallel.alone import Facts
from minidl.profiler import phase, unwatched
from minidl.recording import Recording, present
from minidl.run import Run, device_of
from minidl.tensor import Tensor

WARM = 2                # ordinary steps of a shape before it is recorded
MOST = 4                # graphs, one a shape; what has none is done the ordinary way
PLAIN = {bool, float, str, type(None)}      # attributes of layers that decide what a step does, such as the rate of a dropout

Learn = Callable[..., Facts]


class Capture:
    """The steps of a run, replayed where they can be. learn: the ordinary step, see loop.learn; Capture is called like it.

    The run's device works on a stream of this Capture's own within its `with` block, because others cannot be recorded.
    ArgumentError where it is known before that a step cannot be recorded, with the reason.
    """

    def __init__(self, run: Run, learn: Learn, device: str):
        check(run, device)
        self.run, self.learn, self.device = run, learn, device
        library: Any = backend.library_named(device)
        self.xp, self.streams, self.stream = library.xp, library.streams, library.streams.new(device)
        self.pool = library.pool(device)                        # of all graphs
        self.seen: dict[Any, int] = {}                          # ordinary steps, by shape
        self.steps: dict[Any, Step] = {}                        # recorded ones
        self.places: dict[tuple[Module, str], Array] = {}       # the arrays that replays know as buffers
        self.modules = [module for _, module in run.model.named_modules()]
        self.parameters = {**dict(run.model.named_parameters()), **run.optimizer.parameters}
        self.fixed: list[tuple[dict[str, Any], str]] = []       # attributes of modules that recorded steps take for granted
        self.counts: set[tuple[Module, str]] = set()            # and those that they move
        self.assumed: Any = None                                # what the recorded steps take for granted
        self.held: list[Array] = []                             # the arrays in that, whose ids no others may get

    def __enter__(self) -> Self:
        self.within = ExitStack()
        self.stream.wait_event(self.streams.current(self.device).record())
        self.within.enter_context(self.stream)
        return self

    def __exit__(self, *error: Any) -> None:
        with suppress(Exception):                               # what is wrong with the device has been told
            self.stream.synchronize()
        self.within.close()
        self.steps.clear()

    def __call__(self, run: Run, x: Array, y: Array, *args: Any) -> Facts:
        """Learn from a minibatch."""
        self._look()
        shape = (x.shape, str(x.dtype), y.shape, str(y.dtype))
        if shape not in self.steps:
            seen = self.seen[shape] = self.seen.get(shape, 0) + 1
            if seen <= WARM or len(self.steps) >= MOST:
                return self.learn(run, x, y, *args)
            self._put_back()
            self.steps[shape] = step = self._record(x, y, *args)
            self.counts.update(step.counts)
            self.fixed = [(vars(key[0]), key[1]) for key, _ in attributes(run.model, {int, *PLAIN}) if key not in self.counts]
            self.assumed, self.held = self._facts()
        self._put_back()
        with phase("step"):
            facts = self.steps[shape].replay(run, x, y)
        return self.learn(run, x, y, *args) if facts is None else facts

    def _look(self) -> None:
        """Forget the recorded steps if something that they take for granted is not so any more: the model was moved, a layer frozen."""
        assumed, held = self._facts()
        if assumed != self.assumed:
            if (now := device_of(self.run.model)) != self.device:
                raise GraphError(f"capture: the model is on {now}, and its steps were to be recorded on {self.device}",
                                 hint="Move it before fit, or train without capture.")
            self.steps.clear()
            self.assumed, self.held = assumed, held

    def _facts(self) -> tuple[list[Any], list[Array]]:
        """What a recorded step takes for granted, and the arrays in that: where weights and the optimizer's memory lie, what is frozen,
        hooks, numbers and switches of layers. It is asked at every step, and so takes few microseconds.
        """
        parameters = self.parameters.values()
        held = [*[p._data for p in parameters], *[x for kept in self.run.optimizer.state.values() for x in kept.values()]]
        facts = [[id(x) for x in held], [p.requires_grad for p in parameters], [p.watchers is not None and waiting(p) for p in parameters],
                 [len(module._hooks) for module in self.modules], [kept.get(name) for kept, name in self.fixed]]
        return facts, held

    def _put_back(self) -> None:
        """Ordinary steps make new arrays for some buffers: let their numbers lie where replays look for them."""
        if not self.steps:
            self.places = {(module, name): getattr(module, name) for module in self.modules for name in module.buffers
                           if backend.is_array(getattr(module, name))}
        for (module, name), place in self.places.items():
            now = getattr(module, name)
            if now is not place:
                place[...] = now
                setattr(module, name, place)

    def _record(self, x: Array, y: Array, objective: Any, accumulate: int, *args: Any) -> Step:
        """Record a step. Nothing has changed afterwards."""
        run, xp = self.run, self.xp
        step = Step(run, Recording(self.device, 2 * accumulate), xp.empty_like(x), xp.empty_like(y))
        watched = [path for path, p in self.parameters.items() if waiting(p)]
        watched += [path or type(module).__name__ for path, module in run.model.named_modules() if module._hooks]
        if watched:
            raise GraphError(f"capture: the hooks of {', '.join(watched[:8])} would run once, while the step is recorded, and never again",
                             hint="Remove them, or train without capture.")
        before = {path: repr(generator.bit_generator.state) for path, generator in generators(run.model)}
        switches = dict(attributes(run.model, PLAIN))
        failed: BaseException | None = None
        with step.recording.going_on(), xp.cuda.using_allocator(self._allocate), self._without_copies(), unwatched(), \
                switched(recorder=None), without_collecting():
            self.stream.begin_capture()
            try:
                self.learn(run, step.x, step.y, objective, accumulate, *args, count=step.count)
            except BaseException as error:
                failed = error
            try:
                step.graph = self.stream.end_capture()
            except Exception as error:                          # it was broken by what has failed
                failed = failed or error
        step.settle(run)
        if failed is not None:
            run.optimizer.zero_grad()
            if isinstance(failed, Exception) and not isinstance(failed, MemoryError):
                raise explained(failed, run.model, step.recording.library)
            raise failed
        drawn = [path for path, generator in generators(run.model) if repr(generator.bit_generator.state) != before[path]]
        changed = [f"{type(module).__name__}.{name}" for (module, name), place in self.places.items() if getattr(module, name) is not place]
        moved = [f"{type(module).__name__}.{name}" for (module, name), value in attributes(run.model, PLAIN)
                 if switches.get((module, name), value) != value]
        if drawn or changed or moved:
            run.optimizer.zero_grad()
            what = (f"{drawn[0]} draws random numbers on the host" if drawn else f"{changed[0]} is replaced by a new array" if changed else
                    f"{moved[0]} is another after it")
            raise GraphError(f"capture: the step cannot be recorded: {what}, which a replay would not do",
                             hint="nn.Dropout hashes instead of drawing; write into a buffer's array: self.mean[...] = new. "
                                  "Or train without capture.")
        return step

    def _allocate(self, size: int) -> Any:
        """Memory for a step that is being recorded; what the steps use the pool must not give back, as it does where there is no more."""
        free = self.pool.total_bytes() - self.pool.used_bytes()
        memory = self.pool.malloc(size)
        if self.pool.total_bytes() - self.pool.used_bytes() < free - (size + 511) // 512 * 512:
            raise self.xp.cuda.memory.OutOfMemoryError(size, self.pool.total_bytes())
        return memory

    @contextmanager
    def _without_copies(self) -> Iterator[None]:
        """Within the block numbers do not come from the host unnoticed: they go by page-locked memory that would soon hold others."""
        usual = self.xp.get_default_pinned_memory_pool().malloc

        def allocate(size: int) -> Any:
            recording = present()                               # of this thread: others may go on
            if recording is not None and not recording.growing:
                raise RuntimeError("numbers are copied from the host to the device")
            return usual(size)

        self.xp.cuda.set_pinned_memory_allocator(allocate)
        try:
            yield
        finally:
            self.xp.cuda.set_pinned_memory_allocator(usual)


class Step:
    """A recorded step for minibatches of one shape. x, y: where a replay finds the minibatch."""

    graph: Any

    def __init__(self, run: Run, recording: Recording, x: Array, y: Array):
        self.recording, self.x, self.y = recording, x, y
        self.parts: list[Part] = []
        self.counts = dict(counts(run.model))                   # of the modules; once the step is recorded, by how much it moves them
        recording.counts = {(id(module), name): n for (module, name), n in self.counts.items()}
        self.told = recording.streams.pinned(recording.report.shape, recording.report.dtype)

    def count(self, facts: Facts, run: Run, part: Part, loss: Any, right: Any) -> None:
        """In place of loop.counted: what a part of the minibatch comes to goes to the report."""
        right = None if right is None else right.astype("int64", copy=False)
        report.tell(loss.data, right, 1 + 2 * len(self.parts), self.recording.report)
        self.parts.append(part)

    def settle(self, run: Run) -> None:
        """The step is recorded: set back what it has counted, to be counted at each replay."""
        now = dict(counts(run.model))
        for (module, name), n in self.counts.items():
            setattr(module, name, n)
        self.counts = {key: now[key] - n for key, n in self.counts.items() if now[key] != n}
        self.gradients = {path: p._grad for path, p in run.optimizer.parameters.items()}

    def replay(self, run: Run, x: Array, y: Array) -> Facts | None:
        """Learn from a minibatch. None if its loss or its gradient is not finite: then nothing has changed."""
        self.x[...] = x
        self.y[...] = y
        recording, stream = self.recording, self.recording.streams.current(self.recording.device)
        recording.refresh()
        self.graph.launch(stream)
        recording.streams.copy(recording.report, self.told, stream)
        stream.synchronize()
        if not self.told[0]:
            return None
        for path, grad in self.gradients.items():
            run.optimizer.parameters[path]._grad = grad
        for (module, name), more in self.counts.items():
            setattr(module, name, getattr(module, name) + more)
        for action in recording.afterwards:
            action()
        facts = Facts(stop=run.stop)
        for part, loss, right in zip(self.parts, self.told[1::2], self.told[2::2]):
            facts.loss += float(loss) * part.weight
            facts.right += int(right)
            facts.seen += part.count
        return facts


@contextmanager
def without_collecting() -> Iterator[None]:
    """Within the block the garbage collector does not run: what it frees may be the device's, which is not to be asked for anything."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def counts(model: Module) -> Iterator[tuple[tuple[Module, str], int]]:
    """The whole numbers that the modules of a model keep as attributes."""
    return attributes(model, {int})


def attributes(model: Module, kinds: Container[type]) -> Iterator[tuple[tuple[Module, str], Any]]:
    """What the modules of a model keep as attributes of some types."""
    for _, module in model.named_modules():
        for name, value in vars(module).items():
            if type(value) in kinds:
                yield (module, name), value


def waiting(p: Tensor) -> int:
    """How many hooks and observers wait for the gradient of a Parameter."""
    found = p.watchers
    return 0 if found is None else len(found.hooks) + len(found.ready) + len(found.observers)


def check(run: Run, device: str) -> None:
    """ArgumentError where it is known that the steps of a run cannot be recorded."""
    kind, modes = type(run.optimizer), mode.get()
    reasons = [
        (backend.library_named(device).streams is None, f"the model is on {device}, and graphs are recorded on a GPU"),
        (run.team.cuts, f"{run.team.ranks} processes train together, and what they exchange goes by the host"),
        (kind.together is None, f"{kind.__name__} updates one parameter after the other, and may decide on the host how"),
        (modes.numerics or modes.saved, "check_numerics and check_saved look at every number on the host"),
        (not twins_allowed(), "the reference kernels were asked for, and only those of kernels/cuda can be recorded"),
    ]
    for applies, why in reasons:
        if applies:
            raise ArgumentError(f"capture: {why}", hint="Train without capture.")


def explained(error: Exception, model: Module, library: backend.Library) -> Exception:
    """The error for a step that cannot be recorded: which operation of which layer, and the line that called it."""
    if isinstance(error, MinidlError):
        error.add_note("  while the step was recorded (capture)")
        return error
    layer, operation, line = "", "", ""
    package = library.array.__module__.partition(".")[0]            # of the array library
    paths = {id(module): f"{path} ({type(module).__name__})" if path else type(module).__name__ for path, module in model.named_modules()}
    traced = error.__traceback__
    while traced is not None:
        frame, where = traced.tb_frame, traced.tb_frame.f_code.co_filename
        owner = frame.f_locals.get("self")
        if isinstance(owner, library.array) or str(frame.f_globals.get("__name__")).partition(".")[0] == package:
            break                                               # the array library's own affair
        if id(owner) in paths and owner is not model:
            layer = paths[id(owner)]
        elif isinstance(owner, Function):
            operation = type(owner).name
        if not where.startswith(HOME):
            line = f"{Path(where).name}:{traced.tb_lineno}"
        traced = traced.tb_next
    facts = {name: value for name, value in (("operation", operation), ("line", line)) if value}
    found = GraphError(f"capture: the step cannot be recorded: {error}" + (f"\n  in layer {layer}" if layer else ""),
                       hint="What a step reads of a device's array, or copies there, is not there when it is replayed: compute with "
                       "minidl.functions, or train without capture.", **facts)
    found.__cause__ = error
    return found
