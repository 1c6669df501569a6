"""Team: what users may do on the way, what goes wrong on one rank, and what is left when it is over. The bits: test_equalities.py."""

import copy
import threading

import numpy as np
import pytest
from ranks import on_ranks
from trained import Case, Odd, alone, differences, images, left, mlp, numbers, rng, together

from minidl import data, nn, optim
from minidl import functions as F
from minidl.data import Loader
from minidl.errors import ArgumentError, CheckpointError, ExchangeError, GraphError, NumericsError
from minidl.loop import Callback, Objective, evaluate, fit, reconstruction
from minidl.nn import Parameter
from minidl.parallel import Alone, EmulatedDevice, Facts, Team, local
from minidl.watchers import arriving

EXCHANGES = "allreduce", "master-worker"
OVERLAPS = "none", "backward", "forward"
ALL = [(exchange, overlap) for exchange in EXCHANGES for overlap in OVERLAPS]
STEPS = Case(epochs=2, examples=43)                     # 10 steps


class At(Callback):
    """Calls something with the Run after some steps, or epochs."""

    def __init__(self, *steps, do, epochs=()):
        self.steps, self.do, self.epochs = steps, do, epochs

    def step(self, run, loss):
        if run.step in self.steps:
            self.do(run)

    def epoch(self, run, metrics):
        if metrics["epoch"] in self.epochs:
            self.do(run)


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No thread of an exchange outlives a run, whatever its end, and nobody waits for a weight."""
    before = set(threading.enumerate())
    yield
    names = [thread.name for thread in threading.enumerate() if thread.name == "minidl-exchange" and thread not in before]
    waiting = len(arriving)
    arriving.clear()                                    # or every test that follows would fail too
    assert names == [] and not waiting


def hooks(model):
    return sum(len(p.watchers.ready) for p in model.parameters() if p.watchers is not None)


# What users do on the way

def same_with_callbacks(make, exchange, overlap, case=STEPS, ranks=2, **options):
    """Callbacks that change the run change it on ranks as they do in one process."""
    wanted = left(*case.train(accumulate=ranks, callbacks=make()))
    found = local.run(lambda communicator: together(communicator, case, exchange, overlap=overlap, chunk=100, callbacks=make(), **options),
                      ranks, patience=20)
    assert [differences(wanted, each) for each in found] == [[]] * ranks


@pytest.mark.parametrize("exchange, overlap", ALL)
def test_layers_may_be_frozen_and_freed_on_the_way(exchange, overlap):
    def change(run):
        run.model[0].w.requires_grad = run.step == 4
        run.model[1].w.requires_grad = run.step == 2

    same_with_callbacks(lambda: [At(2, 4, 7, do=change)], exchange, overlap)


@pytest.mark.parametrize("exchange, overlap", ALL)
def test_weights_may_be_written_on_the_way(exchange, overlap):
    """Assigned, written into, or loaded: what was on its way to them has arrived before."""
    def change(run):
        p = run.model.out.w
        p.data = p.data * 0.5
        run.model.stem.w.data[...] *= 0.9
        if run.step % 4 == 0:
            run.model.load_state_dict({name: x * 1.01 if x.dtype.kind == "f" else x for name, x in run.model.state_dict().items()})

    same_with_callbacks(lambda: [At(*range(1, 10), do=change)], exchange, overlap, Case(images, width=16, epochs=2, examples=43))


@pytest.mark.parametrize("exchange, overlap", [("allreduce", "forward"), ("master-worker", "backward"), ("master-worker", "forward")])
def test_options_may_be_changed_on_the_way(exchange, overlap):
    def change(run):
        run.optimizer.options["lr"] = 0.1 / run.step

    same_with_callbacks(lambda: [At(*range(1, 10), do=change)], exchange, overlap)


LOOKS = {
    "data": lambda run, p: p.data.copy(),
    "detach": lambda run, p: p.detach().numpy().copy(),
    "repr": lambda run, p: repr(p),
    "compare": lambda run, p: p > 0,
    "copy": lambda run, p: copy.deepcopy(p).data,
    "state_dict": lambda run, p: run.model.state_dict()["2.w"],
    "operation": lambda run, p: (p * 2).data,
    "run": lambda run, p: run.state()[0]["optimizer.0.w.velocity"],
    "optimizer": lambda run, p: run.optimizer.state_dict()["0.w.velocity"],
    "evaluate": lambda run, p: evaluate(run.model, numbers(11, seed=7)),
    "item": lambda run, p: (p[0, 0] * 1).item(),
}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_whoever_looks_at_a_weight_sees_it_finished(exchange):
    """In the middle of a forward pass that does not wait, by whatever way: the same as without any overlap."""
    def seen(overlap, *ways):
        def rank(communicator):
            found = {how: [] for how in ways}
            look = At(*range(1, 11), do=lambda run: [found[how].append(LOOKS[how](run, run.model[2].w)) for how in ways])
            together(communicator, STEPS, exchange, overlap=overlap, chunk=20, callbacks=[look])
            return found
        return local.run(rank, 2, patience=20)

    without = seen("none", *LOOKS)
    for how in LOOKS:
        plain, forward = [each[how] for each in without], [each[how] for each in seen("forward", how)]
        if exchange == "master-worker" and how in ("run", "optimizer"):         # which the master alone keeps
            plain, forward = plain[:1], forward[:1]
        for one, other in zip(plain, forward, strict=True):
            assert len(one) == 10 and all(np.array_equal(x, y) for x, y in zip(one, other, strict=True)), how


@pytest.mark.parametrize("exchange, overlap", ALL)
def test_a_run_that_is_to_end_after_an_epoch_does(exchange, overlap):
    def stop(run):
        run.stop = True

    same_with_callbacks(lambda: [At(do=stop, epochs=[2])], exchange, overlap, Case(epochs=4, examples=23))


@on_ranks(3, kinds=("local",))
def test_one_rank_may_end_the_run_of_all(communicator):
    """All after the same minibatch: the one that follows the wish, which travels with it."""
    steps = []

    def stop(run):
        run.stop = communicator.rank == 1 and run.step == 3

    watch = At(*range(1, 100), do=lambda run: (steps.append(run.step), stop(run) if not run.stop else None))
    together(communicator, STEPS, callbacks=[watch], overlap="backward")
    assert steps[-1] in (3, 4)
    assert len({int(x) for x in communicator.allgather(np.array(steps[-1]))}) == 1


# Data

@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch", [1, 5, 10, 64])
def test_every_sample_comes_once_an_epoch(ranks, batch):
    x = np.arange(43, dtype=np.float32).reshape(-1, 1)

    def rank(communicator):
        team, seen = Team(communicator), []
        for epoch in range(2):
            loader = team.deal(Loader((x, np.zeros(43, int)), batch_size=batch, seed=1))
            seen.append(np.concatenate([part[:, 0] for part, _ in loader.epoch(epoch)]))
        return seen

    for epochs in zip(*local.run(rank, ranks)):
        np.testing.assert_array_equal(np.sort(np.concatenate(epochs)), np.arange(43))


def test_a_loader_is_not_changed_for_being_dealt_out():
    """It may be used alone afterwards, and by ranks that are threads at once."""
    train, test = Loader(numbers(43), batch_size=10), Loader(numbers(20, seed=2), batch_size=7, shuffle=False)

    def rank(communicator):
        model = mlp()
        fit(model, train, test, optim.SGD(model, lr=0.1), 1, team=Team(communicator))
        return evaluate(model, test)

    first, second = local.run(rank, 2)
    assert first == second and (train.rank, train.ranks, test.rank, test.ranks) == (0, 1, 0, 1)


class Wide(nn.Module):
    def __init__(self):
        self.inner = mlp("float64")

    def forward(self, x):
        return self.inner(x.astype("float64"))


@pytest.mark.parametrize("master_computes", [True, False])
def test_evaluation_is_exact_however_it_is_divided(master_computes):
    x, y = numbers(101, seed=9)
    loss, accuracy = evaluate(Wide(), Loader((x, y), batch_size=7, shuffle=False))
    for ranks in (2, 3, 5, 110):
        for batch in (1, 7, 256) if ranks < 10 else (7,):
            def rank(communicator, batch=batch):
                team = Team(communicator, master_computes=master_computes)
                return evaluate(Wide(), Loader((x, y), batch_size=batch, shuffle=False), team=team)

            found = local.run(rank, ranks)
            assert all(each == found[0] for each in found)
            assert found[0][1] == accuracy and abs(found[0][0] - loss) < 1e-12


def test_metrics_are_everyones():
    """History, test metrics too, is the same on all ranks, and near that of one process (its training part, to the bit)."""
    test = numbers(31, seed=4)

    def run(team, parts):
        model = mlp()
        return fit(model, Loader(numbers(43), batch_size=10, seed=1), test, optim.SGD(model, lr=0.1), 2, accumulate=parts, team=team)

    alone_, ranks = run(None, 3), local.run(lambda communicator: run(Team(communicator), 1), 3)
    for history in ranks:
        for one, other, first in zip(alone_, history, ranks[0], strict=True):
            assert [one[name] for name in ("epoch", "train_loss", "train_accuracy", "test_accuracy")] == \
                [other[name] for name in ("epoch", "train_loss", "train_accuracy", "test_accuracy")]
            assert abs(one["test_loss"] - other["test_loss"]) < 1e-6 and other["test_loss"] == first["test_loss"]
            assert other["phases"]["gradient exchange"] > 0 and "gradient exchange" not in one["phases"]


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_fewer_examples_than_ranks(overlap):
    """Some ranks never see any, and yet have what the others have."""
    case = Case(examples=2, batch=5, epochs=3)
    found = local.run(lambda communicator: together(communicator, case, "master-worker", overlap=overlap, chunk=100), 4, patience=20)
    assert [differences(alone(case, 4), each) for each in found] == [[]] * 4


@pytest.mark.parametrize("drop_last", [False, True])
def test_augmentation_prefetching_and_targets_that_are_no_classes(drop_last):
    """What is drawn for an example does not depend on the rank that has it; without right answers there is no accuracy."""
    x = rng(3).random((43, 1, 4, 4)).astype(np.float32)

    def run(team, parts):
        g = rng()
        model = nn.Sequential(nn.Flatten(), nn.Affine(16, 5, activation="tanh", generator=g), nn.Affine(5, 16, generator=g))
        loader = Loader((x, np.zeros(43, int)), batch_size=10, seed=1, drop_last=drop_last,
                        transform=data.Compose(data.HorizontalFlip(), data.RandomCrop(padding=1)))
        history = fit(model, loader, (x, np.zeros(43, int)), optim.SGD(model, lr=0.1), 2, objective=reconstruction(), accumulate=parts,
                      team=team)
        assert history[-1]["train_accuracy"] is None and history[-1]["test_accuracy"] is None
        return {name: weights.tobytes() for name, weights in model.state_dict().items()}, [each["train_loss"] for each in history]

    wanted = run(None, 3)
    assert local.run(lambda communicator: run(Team(communicator, overlap="forward", chunk=100), 1), 3, patience=20) == [wanted] * 3


# Going on

class Taken(Exception):
    pass


@pytest.mark.parametrize("exchange, overlap", [("allreduce", "forward"), ("master-worker", "forward"), ("master-worker", "backward")])
@pytest.mark.parametrize("step", [7, 10], ids=["within an epoch", "after one"])
def test_a_checkpoint_of_three_ranks_goes_on_with_two_and_one(exchange, overlap, step):
    """Bit for bit what one process does that takes 3 parts, then 2, then 1."""
    case = Case(images, width=16, epochs=4, examples=43)

    def taking(at, kept):
        def take(run):
            state = copy.deepcopy(run.state())
            if run.team.leads:
                kept.append(state)
            run.team.sums([0])                          # the end of one rank is that of all
            raise Taken
        return At(at, do=take) if at % 5 else At(do=take, epochs=[at // 5])

    def through(train, parts, at, resume):
        kept = []
        with pytest.raises(Taken):
            train(parts, [taking(at, kept)], resume)
        return kept[0]

    def in_parts(parts, callbacks, resume):
        return left(*case.train(accumulate=parts, callbacks=callbacks, resume=resume))

    def on_many(ranks, callbacks, resume):
        return local.run(lambda communicator: together(communicator, case, exchange, overlap=overlap, chunk=1000, callbacks=callbacks,
                                                       resume=resume), ranks, patience=20)

    first = through(in_parts, 3, step, None)
    second = through(in_parts, 2, 13, first)
    state = through(on_many, 3, step, None)
    for wanted, found in zip(first[0].items(), state[0].items(), strict=True):
        assert wanted[0] == found[0] and wanted[1].tobytes() == found[1].tobytes()
    assert [differences(in_parts(2, (), first), each) for each in on_many(2, (), state)] == [[], []]
    state = through(on_many, 2, 13, state)
    assert differences(in_parts(3, (), second), on_many(3, (), state)[2]) == []


@on_ranks(2, kinds=("local",))
def test_all_begin_where_rank_0_stands(communicator):
    """Other weights and other memory on the others are replaced, in their memory order."""
    model = Odd()
    for p in model.parameters():
        p.data[...] += communicator.rank
    orders = [p.data.strides for p in model.parameters()]
    optimizer = optim.Adam(model, lr=0.1)
    team = Team(communicator)
    history = fit(model, Loader(numbers(43), batch_size=10), None, optimizer, 1, team=team)
    states = communicator.gather_bytes(b"".join(left(model, optimizer, history).values()))
    assert states[0] == states[1] and [p.data.strides for p in model.parameters()] == orders


def test_a_checkpoint_of_another_model_is_refused_on_all():
    def rank(communicator):
        together(communicator, STEPS, resume=({"model.w": np.ones(3)}, {}))

    with pytest.raises(CheckpointError):
        local.run(rank, 2)


# What goes wrong

@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("where", ["step", "forward", "loss"])
def test_an_error_of_one_rank_ends_all_and_leaves_nothing_behind(overlap, where):
    trained = []

    def rank(communicator):
        mine = communicator.rank == 1
        model, passes = mlp(), []
        trained.append(model)

        def broken(module, x, y):
            passes.append(1)
            if mine and len(passes) == 4:
                raise KeyError("broken")

        def loss(outputs, x, y):
            if mine and where == "loss" and len(passes) == 4:
                return F.softmax_cross_entropy(outputs, y) * np.float32(np.nan)
            return F.softmax_cross_entropy(outputs, y)

        if where != "step":
            model.register_forward_hook(broken if where == "forward" else lambda module, x, y: passes.append(1))

        def raise_(run):
            raise KeyError("broken")

        callbacks = [At(4, do=raise_)] if where == "step" and mine else []
        fit(model, Loader(numbers(43), batch_size=10), None, optim.SGD(model, lr=0.1), 2, callbacks, objective=Objective(loss),
            team=Team(communicator, overlap=overlap, chunk=50))

    kind, text = (NumericsError, "the loss is nan at step 4") if where == "loss" else (KeyError, "broken")
    with pytest.raises(kind, match=text) as caught:
        local.run(rank, 3, patience=20)
    assert caught.value.__notes__ == ["in rank 1"]
    assert [hooks(model) for model in trained] == [0, 0, 0]


@pytest.mark.parametrize("at", [3, 10], ids=["on the way", "in the last step"])
@pytest.mark.parametrize("exchange, overlap", ALL)
def test_an_error_of_the_optimizer_is_told_whoever_runs_it(exchange, overlap, at):
    """In the engine's thread too, and when nothing comes after it."""
    models = []

    class Breaking(optim.SGD):
        def update(self, w, g, state, t, **options):
            if t == at:
                raise ZeroDivisionError("in the optimizer")
            super().update(w, g, state, t, **options)

    def rank(communicator):
        model = mlp()
        models.append(model)
        fit(model, Loader(numbers(43), batch_size=10), None, Breaking(model, lr=0.1), 2, team=Team(communicator, exchange, overlap=overlap))

    with pytest.raises(ZeroDivisionError, match="in the optimizer"):
        local.run(rank, 2, patience=20)
    assert [hooks(model) for model in models] == [0, 0]


@pytest.mark.parametrize("exchange, overlap", ALL)
def test_a_gradient_that_nobody_has_is_an_error(exchange, overlap):
    """The loss depends on a parameter, but no rank's optimizer has any that it depends on."""
    def rank(communicator):
        model, other = mlp(), Parameter(np.ones(3, "float32"))
        fit(model, Loader(numbers(43), batch_size=10), None, optim.SGD({"other": other}, lr=0.1), 1,
            team=Team(communicator, exchange, overlap=overlap))

    with pytest.raises(GraphError, match="no parameter has a gradient"):
        local.run(rank, 2, patience=20)


def test_a_loss_without_parameters_is_an_error():
    def rank(communicator):
        model = mlp().requires_grad_(False)
        fit(model, Loader(numbers(43), batch_size=10), None, optim.SGD(model, lr=0.1), 1, team=Team(communicator))

    with pytest.raises(GraphError, match="depends on no parameter"):
        local.run(rank, 2, patience=20)


@pytest.mark.parametrize("other, named", [
    (lambda: nn.Sequential(nn.Affine(6, 12, activation="tanh"), nn.Affine(12, 8), nn.Affine(8, 3)), r"1\.w \(12, 8\)"),
    (lambda: mlp("float64"), "float64"),
    (lambda: nn.Sequential(nn.Affine(6, 12, activation="tanh"), nn.Affine(12, 3)), r"2\.b \(3,\)"),
], ids=["shape", "dtype", "layers"])
def test_ranks_with_other_models_are_told_what_differs(other, named):
    def rank(communicator):
        model = other() if communicator.rank == 2 else mlp()
        Team(communicator).bind(model, optim.SGD(model, lr=0.1))

    with pytest.raises(ExchangeError, match="rank 2 trains another model than rank 0") as caught:
        local.run(rank, 3, patience=20)
    caught.match(named)


@pytest.mark.parametrize("options, text", [({"overlap": "forwards"}, "nearest: 'forward'"), ({"exchange": "ring"}, "no exchange 'ring'"),
                                           ({"chunk": 0}, "at least 1"), ({"master_computes": False}, "at least one worker")])
def test_what_makes_no_sense(options, text):
    with pytest.raises(ArgumentError, match=text):
        local.run(lambda communicator: together(communicator, STEPS, **{"exchange": "allreduce", **options}), 1)


def test_a_gradient_that_changes_after_it_was_sent_is_an_error():
    """Two backward passes after listen()."""
    def rank(communicator):
        model = mlp()
        optimizer = optim.SGD(model, lr=0.1)
        x, y = numbers(4)
        with Team(communicator, overlap="backward") as team:
            team.join(model, optimizer)
            team.listen()
            for _ in range(2):
                F.softmax_cross_entropy(model(x), y).backward()

    with pytest.raises(ExchangeError, match="has changed after it was sent"):
        local.run(rank, 2, patience=20)


# Own loops

def own_loop(communicator, exchange, overlap, parts=1, clip=None):
    """The loop of the documentation, with an optimizer over a part of the model only."""
    model = images()
    optimizer = optim.Adam({path: p for path, p in model.named_parameters() if not path.startswith("norm")}, lr=0.01)
    loader = Loader(numbers(43, width=16), batch_size=10, seed=1)
    team = Alone() if communicator is None else Team(communicator, exchange, overlap=overlap, chunk=200)
    losses = []
    with team:
        team.join(model, optimizer)
        for epoch in range(2):
            for k, (x, y) in enumerate(team.deal(loader).epoch(epoch)):
                optimizer.zero_grad()
                facts, notes, rows = Facts(), [], 0
                mine = team.parts(loader.size(k), parts)
                for part in mine:
                    with part:
                        here = slice(rows, rows + part.count)
                        loss = F.softmax_cross_entropy(model(x[here]), y[here])
                        facts.loss += loss.item() * part.weight
                        if part is mine[-1]:
                            team.listen(clip)
                        loss.backward(part.weight)
                    rows, facts.seen = rows + part.count, facts.seen + part.count
                    notes.append(part.notes)
                facts = team.update(facts, notes, clip)
                losses.append((facts.loss, facts.seen))
    return losses, {name: x.tobytes() for name, x in model.state_dict().items()}, hooks(model)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("exchange, overlap", ALL)
def test_a_loop_of_ones_own(exchange, overlap, clip):
    wanted = own_loop(None, "", "", parts=3, clip=clip)
    found = local.run(lambda communicator: own_loop(communicator, exchange, overlap, clip=clip), 3, patience=20)
    assert found == [wanted] * 3 and wanted[2] == 0


# Compression

@pytest.mark.parametrize("exchange, overlap", ALL)
def test_compressed_all_ranks_have_the_same_weights(exchange, overlap):
    """And what they keep of it, with error feedback or without, is what a run without overlap keeps."""
    case = Case(images, width=16, examples=43, epochs=1)
    for codec in ("fp16", "int8", "topk:0.1"):
        for feedback in (True, False):
            def rank(communicator, codec=codec, feedback=feedback):
                return together(communicator, case, exchange, overlap=overlap, chunk=300, compress=codec, feedback=feedback)

            found = local.run(rank, 3, patience=20)
            shared = [{name: x for name, x in each.items() if not name.startswith("optimizer")} for each in found]
            assert shared[0] == shared[1] == shared[2], (codec, feedback)
            assert differences(alone(case, 3), shared[0])       # it has lost something


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_compression_goes_on_from_a_checkpoint(exchange):
    """What is owed is part of it: stopped and gone on, the bits are those of a run that was not stopped."""
    case = Case(examples=43, epochs=2)

    def rank(communicator, callbacks=(), resume=None):
        team = Team(communicator, exchange, compress="topk:0.1", chunk=300)
        return left(*case.train(team, callbacks, resume=resume), memory=communicator.rank == 0)

    kept = []

    def take(run):
        arrays, rest = copy.deepcopy(run.state())
        owed = {f"exchange.{name}": x for name, x in run.team.state().items()}
        if run.team.leads:
            kept.append((arrays | owed, rest))

    whole = local.run(lambda communicator: rank(communicator, [At(4, do=take)]), 3, patience=20)
    again = local.run(lambda communicator: rank(communicator, resume=copy.deepcopy(kept[0])), 3, patience=20)
    assert [differences(one, other) for one, other in zip(whole, again, strict=True)] == [[]] * 3
    assert any(name.startswith("exchange") for name in kept[0][0])


# Together with the rest

@pytest.mark.parametrize("exchange, overlap", [("allreduce", "forward"), ("master-worker", "forward"), ("master-worker", "backward")])
def test_through_a_device_with_few_chunks_under_way(exchange, overlap):
    wanted = alone(STEPS, 3)
    found = local.run(lambda communicator: together(communicator, STEPS, exchange, overlap=overlap, chunk=60, window=1,
                                                    staging=EmulatedDevice(1e6)), 3, patience=20)
    assert [differences(wanted, each) for each in found] == [[]] * 3


def test_one_team_may_train_one_model_after_the_other():
    def rank(communicator):
        team, found = Team(communicator, overlap="forward", chunk=100), []
        for case in (STEPS, Case(Odd, examples=23, epochs=1), STEPS):
            found.append(left(*case.train(team)))
        return found

    for first, second, third in local.run(rank, 2, patience=20):
        assert differences(first, third) == [] and differences(alone(STEPS, 2), first) == []
        assert differences(alone(Case(Odd, examples=23, epochs=1), 2), second) == []


def test_what_one_process_counts_is_not_changed_by_a_team_of_one():
    """`Alone` and a Team of one rank give the metrics of no team at all."""
    one = left(*STEPS.train())
    assert differences(one, left(*STEPS.train(Alone()))) == []
    assert differences(one, local.run(lambda communicator: together(communicator, STEPS, overlap="forward"), 1)[0]) == []


@on_ranks(2, kinds=("mpi",))
def test_processes_may_change_their_minds(communicator):
    """Frozen and freed on the way, compressed, read in the middle, stopped by one of them: on processes too."""
    seen = []

    def change(run):
        run.model[0].w.requires_grad = run.step >= 4
        seen.append(run.model[2].w.detach().numpy().sum())
        run.stop = run.stop or (communicator.rank == 1 and run.step == 8)

    for exchange, overlap in ALL:
        found = together(communicator.duplicate(), STEPS, exchange, overlap=overlap, chunk=100, compress="int8",
                         callbacks=[At(*range(1, 11), do=change)])
        weights = b"".join(found[name] for name in sorted(found) if name.startswith("model"))
        first, second = communicator.gather_bytes(weights)
        assert first == second
    assert len(seen) == 6 * 9 and rng().random() < 1
