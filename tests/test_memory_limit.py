"""Memory of a device: its limit, what is told when it is too small, and that a run which is advised to be smaller then fits."""

import gc
import re
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

import minidl
from minidl import Tensor, backend, data, kernels, models, nn, optim
from minidl import functions as F
from minidl.errors import ArgumentError, ConfigError, MemoryShortage
from minidl.held import advice
from minidl.loop import fit
from minidl.options import settle_memory
from minidl.shortage import asked, kept, shortage, size_of, words
from minidl.walk import reached

emulated = pytest.importorskip("emulated")
pytestmark = pytest.mark.skipif(bool(emulated.WHY_NOT), reason=emulated.WHY_NOT or "it is there")
DEVICE, MIB = "emulated:0", 2**20


@pytest.fixture
def unlimited():
    """A device without a limit, before and after, and with nothing in its pool; what is computed there is NumPy's, which is quicker."""
    gc.collect()
    emulated.xp.cuda.Device(0).use()
    emulated.xp.get_default_memory_pool().free_all_blocks()
    with kernels.using("reference"):
        yield
    backend.limit_memory(DEVICE, 0)


def limit(more):
    """Let arrays take so many bytes more than they have."""
    gc.collect()
    emulated.xp.get_default_memory_pool().free_all_blocks()
    backend.limit_memory(DEVICE, backend.memory(DEVICE).held + more)


@pytest.mark.usefixtures("unlimited")
class TestMemory:
    def test_what_arrays_take(self):
        before = backend.memory(DEVICE)
        x = emulated.xp.zeros((1000, 256), "float32")
        there = backend.memory(DEVICE)
        assert there.used - before.used == there.held - before.held == before.free - there.free == x.nbytes
        del x
        after = backend.memory(DEVICE)
        assert after.used == before.used and after.held == there.held <= after.peak and after.total == before.total
        assert after.room == before.room == before.free + before.held - before.used

    def test_of_each_device_its_own(self):
        before = backend.memory(DEVICE).used, backend.memory("emulated:1").used
        x = backend.asarray(np.zeros(1000), "emulated:1")
        y = emulated.xp.zeros(1000)                                     # beside it
        assert backend.device_of(y) == "emulated:1"
        with backend.on(DEVICE):
            assert backend.device_of(emulated.xp.zeros(1)) == DEVICE
        assert backend.memory(DEVICE).used == before[0] and backend.memory("emulated:1").used - before[1] >= x.nbytes + y.nbytes

    def test_unknown_of_the_cpu(self):
        assert backend.memory("cpu") is None and backend.peak_memory("cpu") == 0 and backend.watched("cpu") is None

    def test_a_pool_of_one_s_own_is_counted(self):
        pool, before = backend.library_named(DEVICE).pool(DEVICE), backend.memory(DEVICE)
        with emulated.xp.cuda.using_allocator(pool.malloc):
            x = emulated.xp.zeros(MIB, "uint8")
        assert backend.memory(DEVICE).used - before.used == x.nbytes

    def test_watched(self):
        x = emulated.xp.zeros(MIB, "uint8")
        with backend.watched(DEVICE) as now, backend.watched(DEVICE) as again:
            y = emulated.xp.zeros(MIB, "uint8")
            del x, y
            assert now() == again() == -MIB and now(most=True) == MIB and now(most=True) == -MIB


@pytest.mark.usefixtures("unlimited")
class TestLimit:
    def test_no_more_than_that(self):
        limit(4 * MIB)
        x = emulated.xp.zeros(3 * MIB, "uint8")
        with pytest.raises(MemoryError):
            emulated.xp.zeros(2 * MIB, "uint8")
        assert backend.memory(DEVICE).room == 4 * MIB - x.nbytes

    def test_what_is_kept_for_the_next_arrays_makes_way(self):
        limit(4 * MIB)
        [emulated.xp.zeros(MIB, "uint8") for _ in range(4)].clear()
        assert emulated.xp.zeros(3 * MIB, "uint8").nbytes == 3 * MIB

    def test_of_all_pools_together(self):
        limit(4 * MIB)
        pool = backend.library_named(DEVICE).pool(DEVICE)
        with emulated.xp.cuda.using_allocator(pool.malloc):
            x = emulated.xp.zeros(3 * MIB, "uint8")
            with pytest.raises(MemoryError):
                emulated.xp.zeros(2 * MIB, "uint8")
        with pytest.raises(MemoryError):
            emulated.xp.zeros(2 * MIB, "uint8")
        assert backend.memory(DEVICE).room == emulated.xp.zeros(MIB, "uint8").nbytes
        del x, pool
        gc.collect()
        assert emulated.xp.zeros(3 * MIB, "uint8").nbytes == 3 * MIB

    @pytest.mark.parametrize("device, size, words", [("cpu", MIB, "ulimit"), (DEVICE, -1, "taken"), (DEVICE, 1, "taken")])
    def test_what_makes_no_sense(self, device, size, words):
        x = emulated.xp.zeros(MIB, "uint8")
        with pytest.raises(ArgumentError, match=words):
            backend.limit_memory(device, size)
        assert x.nbytes

    def test_the_option(self):
        options = SimpleNamespace(memory_limit="50%", device=DEVICE, typed={"memory_limit"}, filed=set())
        assert settle_memory(options) == [] and backend.memory(DEVICE).limit == backend.memory(DEVICE).total // 2
        options.memory_limit = "a lot"
        with pytest.raises(ConfigError, match="--memory-limit: a size of 'a lot'"):
            settle_memory(options)
        options.device = "cpu"
        with pytest.raises(ConfigError, match="--memory-limit would not be used"):
            settle_memory(options)
        options.typed, options.filed = set(), {"memory_limit"}
        assert settle_memory(options)[0][0] == "not used" and options.memory_limit is None

    def test_weights_and_what_an_optimizer_keeps(self):
        def mlp():
            return models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0)

        limit(300 * 1024)
        with pytest.raises(MemoryShortage, match=r"to: the weights of .*: out of memory: 512\.0 KiB asked for, (?s:.*)a smaller model"):
            mlp().to(device=DEVICE)
        limit(MIB)
        model = mlp().to(device=DEVICE)
        with pytest.raises(MemoryShortage, match=r"Adam: what it keeps for each weight: out of memory"):
            optim.Adam(model, lr=0.1)


def model_there():
    return models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0).to(device=DEVICE)


def batch(count):
    generator = np.random.default_rng(0)
    return (backend.asarray(generator.random((count, 1, 8, 8), dtype=np.float32), DEVICE),
            backend.asarray(generator.integers(0, 10, count), DEVICE))


@pytest.mark.usefixtures("unlimited")
class TestShortage:
    """In a loop of one's own."""

    def test_in_the_forward_pass(self):
        model, (x, y) = model_there(), batch(512)
        limit(6 * MIB)
        with pytest.raises(MemoryShortage) as caught:
            F.softmax_cross_entropy(model(x), y)
        text = str(caught.value)
        assert re.match(r"\w+: out of memory: [\d.]+ [KM]iB asked for, emulated:0 has [\d.]+ [KM]?i?B left", text)
        assert re.search(r"\n  in layer features.[1-4] \(\w+\)\n  x: \(512, 16, \d, \d\) float32", text)
        assert re.search(r"\n  on emulated:0: arrays [\d.]+ MiB, .*limit [\d.]+ MiB\n", text)
        assert re.search(r"\n  kept for the backward pass: [\d.]+ MiB \(features.0 \(Conv2d\) [\d.]+ MiB", text)
        assert caught.value.asked > 0 and caught.value.memory.limit and isinstance(caught.value, MemoryError)

    def test_in_the_backward_pass(self):
        model, (x, y) = model_there(), batch(512)
        loss = F.softmax_cross_entropy(model(x), y)
        limit(MIB // 2)
        with pytest.raises(MemoryShortage, match=r"backward pass of \w+ in layer features.\d \(\w+\), gradient of [xw]: .* emulated:0 has"):
            loss.backward()

    def test_the_process_goes_on(self):
        gc.collect()
        model, (x, y) = model_there(), batch(512)
        before = backend.memory(DEVICE).used
        limit(2 * MIB)
        with suppress(MemoryShortage):
            F.softmax_cross_entropy(model(x), y)
        gc.collect()
        assert backend.memory(DEVICE).used == before
        F.softmax_cross_entropy(model(x[:32]), y[:32]).backward()

    def test_of_numpy(self):
        with pytest.raises(MemoryShortage, match=r"asked for, cpu has no such piece"):
            F.broadcast_to(Tensor(np.zeros(1)), (2**40, 2**10)) + 1.0

    def test_of_others(self):
        found = shortage(MemoryError(), "sum", None)
        assert "sum: out of memory: more was asked for, cpu has no such piece" in str(found) and asked(found) == 0

    def test_what_a_graph_keeps(self):
        w = Tensor(np.ones((4, 4), np.float32), requires_grad=True)
        x = np.ones((8, 4), np.float32)
        h = F.tanh(x @ w)                               # keeps x for w, then h for itself
        y = F.tanh(h @ w)                               # keeps h again, and y
        sizes = kept([y.node])
        assert sum(sizes.values()) == 3 * x.nbytes and set(sizes) == {"matmul", "tanh"}
        assert {node.order for node in reached([(y.node, 0)])} and kept([]) == {}


def run(batch_size, more=None, epochs=1, objective=None, optimizer=None, **options):
    """A run of so many examples at a time, with so much more memory than the model takes."""
    generator = np.random.default_rng(0)
    train = data.Dataset(generator.integers(0, 256, (300, 1, 8, 8), dtype=np.uint8), generator.integers(0, 10, 300))
    model = nn.Sequential(nn.Conv2d(1, 8, 3, generator=0), nn.ReLU(), nn.Flatten(), nn.Affine(288, 10, generator=0)).to(device=DEVICE)
    optimizer = (optimizer or (lambda model: optim.SGD(model, lr=0.01, momentum=0.9)))(model)
    loader = data.Loader(train, batch_size=batch_size, seed=0, drop_last=True)
    if more is not None:
        limit(more)
    return fit(model, loader, None, optimizer, epochs, objective=objective, **options)


@pytest.mark.usefixtures("unlimited")
class TestRun:
    """What a run tells, and whether it is true."""

    def test_who_holds_what(self):
        with pytest.raises(MemoryShortage) as caught:
            run(256, MIB // 2)
        text = str(caught.value)
        size = 4 * (8 * 9 + 8 + 288 * 10 + 10)
        assert f"held in step 1: parameters {words(size)}, optimizer {words(size)}, data set 21.1 KiB" in text
        assert "in layer 0 (Conv2d)" in text and "examples at a time would fit, of 256: --batch-size" in text
        assert caught.value.__suppress_context__

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_what_is_advised_fits(self, accumulate):
        more = MIB // (1 + accumulate)
        with pytest.raises(MemoryShortage) as caught:
            run(256, more, accumulate=accumulate)
        size, parts = map(int, re.search(r"--batch-size (\d+), or --accumulate (\d+)", str(caught.value)).groups())
        assert 8 <= size < 150
        for count, several in ((size, accumulate), (256, parts)):
            backend.limit_memory(DEVICE, 0)
            run(count, more, accumulate=several)
        backend.limit_memory(DEVICE, 0)
        with pytest.raises(MemoryShortage):
            run(2 * size, more, accumulate=accumulate)

    def test_the_process_goes_on(self):
        with pytest.raises(MemoryShortage):
            run(256, MIB // 2)
        gc.collect()
        history = run(64)
        assert history[-1]["train_loss"] > 0

    def test_before_anything_is_known(self):
        with pytest.raises(MemoryShortage, match=r"fit, in \w+ of device: .*\n(.*\n)*.*Give fewer examples at a time"):
            run(256, MIB // 64)

    def test_outside_of_the_layers(self, monkeypatch):
        def full(*args, **options):
            raise MemoryError

        monkeypatch.setattr(optim.SGD, "step", full)
        with pytest.raises(MemoryShortage, match=r"fit, in \w+ of \w+: out of memory: more was asked for.*\n(.*\n)*.*gradients"):
            run(64)

    def test_of_kfac_its_factors_too(self):
        class After(minidl.loop.Callback):
            def step(self, run, loss):
                raise MemoryError

        with pytest.raises(MemoryShortage) as caught:
            run(64, optimizer=lambda model: optim.KFAC(model, lr=0.01), callbacks=[After()])
        held = dict(re.findall(r"([a-z ]+) ([\d.]+) KiB", re.search("held in step 2: (.*)", str(caught.value))[1]))
        assert float(held[" gradients"]) == float(held["parameters"]) == pytest.approx(11.6)
        assert float(held[" factors and inverses"]) > 2 * 289 * 289 * 4 / 1024      # of the last layer's inputs alone


class TestWords:
    @pytest.mark.parametrize("text, size", [("8GiB", 2**33), ("500MB", 500 * 10**6), ("500 mb", 500 * 10**6), ("1.5KiB", 1536), ("64B", 64),
                                            ("50%", 2**34), ("100 %", 2**35)])
    def test_sizes(self, text, size):
        assert size_of(text, 2**35) == size

    @pytest.mark.parametrize("text", ["", "8", "GiB", "-1GiB", "8 GiBs", "0MB", "0%", "101%", "33GiB", "1e3MB", "eight GiB"])
    def test_what_is_no_size(self, text):
        with pytest.raises(ArgumentError, match="a size of"):
            size_of(text, 2**35)

    @pytest.mark.parametrize("size, text", [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**20, "3.0 MiB"),
                                            (5 * 2**29, "2.50 GiB")])
    def test_words(self, size, text):
        assert words(size) == text

    @pytest.mark.parametrize("arguments, text", [
        ((100, 512, 512, 1, 1), "About 96 examples at a time would fit, of 512: --batch-size 96, or --accumulate 6."),
        ((100, 256, 512, 2, 4), "About 96 examples at a time would fit, of 256: --batch-size 768, or --accumulate 6."),
        ((7, 64, 64, 1, 1), "About 7 examples at a time would fit, of 64: --batch-size 7, or --accumulate 10."),
        ((0, 64, 64, 1, 1), "Not one example would fit"), ((None, 64, 64, 1, 1), "Give fewer examples at a time")])
    def test_advice(self, arguments, text):
        assert advice(*arguments).startswith(text)
