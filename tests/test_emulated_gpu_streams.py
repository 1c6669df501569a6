"""Streams, graphs and memory of the emulated GPU behave as CuPy's, and what CuPy refuses is refused."""

import numpy as np
import pytest
from test_emulated_gpu import back, kernel, there

import emulated
from emulated import xp

if emulated.WHY_NOT:
    pytest.skip(emulated.WHY_NOT, allow_module_level=True)


class TestStreams:
    def test_a_copy_is_late_until_somebody_waits(self):
        pinned = np.frombuffer(xp.cuda.alloc_pinned_memory(16), np.float32)
        pinned[...] = 1
        x, stream = xp.zeros(4, np.float32), xp.cuda.Stream(non_blocking=True)
        x.set(pinned, stream=stream)
        event = stream.record()
        assert not back(x).any()
        xp.cuda.get_current_stream().wait_event(event)
        assert back(x).all()

    def test_what_is_copied_must_stay_until_then(self):
        pinned = np.frombuffer(xp.cuda.alloc_pinned_memory(16), np.float32)
        x, stream = there(np.ones(4), np.float32), xp.cuda.Stream(non_blocking=True)
        x.get(out=pinned, stream=stream, blocking=False)
        x += 1
        assert np.isnan(pinned).all()
        stream.synchronize()
        np.testing.assert_array_equal(pinned, 2)

    def test_time_passes(self):
        first, last = xp.cuda.Event(), xp.cuda.Event()
        first.record()
        last.record()
        with pytest.raises(RuntimeError, match="cudaErrorNotReady"):
            xp.cuda.get_elapsed_time(first, last)
        last.synchronize()
        assert xp.cuda.get_elapsed_time(first, last) >= 0 and first.done and last.done


class TestCapture:
    DOUBLE = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] *= 2; }'

    def captured(self, step):
        stream = xp.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            assert stream.is_capturing()
            result = step()
            return stream.end_capture(), result

    def test_runs_nothing_and_is_replayed(self):
        x, double = there(np.arange(4), np.float32), kernel(self.DOUBLE)

        def step():
            double((1,), (4,), (x,))
            y = x + 1
            view = y[1:]
            view *= 3
            return y, x.sum(), y.reshape(2, 2).T
        graph, results = self.captured(step)
        np.testing.assert_array_equal(back(x), np.arange(4))
        assert all(np.isnan(back(y)).all() for y in results)
        for replay in (2, 4):
            graph.launch()
            now = np.arange(4) * replay
            y = np.where(np.arange(4) < 1, now + 1, (now + 1) * 3)
            for mine, wanted in zip((x, *results), (now, y, now.sum(), y.reshape(2, 2).T)):
                np.testing.assert_array_equal(back(mine), wanted)

    @pytest.mark.parametrize("step", [
        lambda x: float(x[0]), lambda x: bool(x[0] > 0), lambda x: x.get(), lambda x: x[0].item(), lambda x: xp.asarray(np.zeros(3)),
        lambda x: xp.asarray(1.0), lambda x: x[x > 0], lambda x: xp.nonzero(x), lambda x: xp.cuda.get_current_stream().synchronize(),
        lambda x: x.set(np.zeros(4, np.float32)), lambda x: x.tolist(), lambda x: x.__setitem__(x > 0, 0.0),
        lambda x: xp.concatenate([x] * 9),
    ])
    def test_refuses_what_makes_the_host_wait(self, step):
        x, stream = there(np.arange(4), np.float32), xp.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            with pytest.raises(RuntimeError, match="cudaErrorStreamCapture"):
                step(x)
            with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureInvalidated"):
                stream.end_capture()

    @pytest.mark.parametrize("step", [lambda x: x @ x, lambda x: xp.einsum("i,i", x, x), lambda x: xp.linalg.norm(x)])
    def test_refuses_cublas_of_cupy_s(self, step):
        x = there(np.arange(4), np.float32)
        with pytest.raises(NotImplementedError):
            self.captured(lambda: step(x))
        xp.cuda.Stream.null.use()

    def test_takes_copies_from_pinned_memory(self):
        pinned, x = np.frombuffer(xp.cuda.alloc_pinned_memory(16), np.float32), xp.zeros(4, np.float32)
        graph, _ = self.captured(lambda: x.set(pinned))
        pinned[...] = 5
        graph.launch()
        np.testing.assert_array_equal(back(x), 5)

    def test_memory_of_a_graph_that_was_given_back(self):
        pool = xp.cuda.MemoryPool()
        with xp.cuda.using_allocator(pool.malloc):
            graph, y = self.captured(lambda: xp.zeros(4, np.float32) + 1)
        del y
        graph.launch()
        pool.free_all_blocks()
        with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
            graph.launch()

    def test_memory_that_another_array_has_got_meanwhile_is_spoilt(self):
        stream, pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()
        with stream, xp.cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            y = xp.ones(4, np.float32)
            graph = stream.end_capture()
            del y
            other = xp.zeros(4, np.float32)
            graph.launch()
            np.testing.assert_array_equal(back(other), 1)


class TestPools:
    def test_count_what_is_used(self):
        pool = xp.cuda.MemoryPool()
        with xp.cuda.using_allocator(pool.malloc):
            x = xp.zeros(1000, np.float32)
            view = x[:10]
            assert pool.used_bytes() == pool.total_bytes() == 4096
            del x
            assert pool.used_bytes() == 4096
            del view
            assert pool.used_bytes() == 0 and pool.free_bytes() == 4096
            xp.zeros(1000, np.float32)
            assert pool.total_bytes() == 4096
        pool.free_all_blocks()
        assert pool.total_bytes() == 0

    def test_have_a_limit(self):
        pool = xp.cuda.MemoryPool()
        pool.set_limit(size=8192)
        with xp.cuda.using_allocator(pool.malloc):
            x = xp.zeros(1024, np.float32)
            with pytest.raises(MemoryError, match=r"allocating 8,192 bytes \(allocated so far: 4,096 bytes, limit set to: 8,192 bytes\)"):
                xp.zeros(2000, np.float32)
            assert x.nbytes == 4096

    def test_tell_hooks(self):
        class Hook(xp.cuda.MemoryHook):
            name, calls = "mine", []

            def malloc_postprocess(self, *, mem_size, **rest):
                self.calls.append(mem_size)

            def free_postprocess(self, *, mem_size, **rest):
                self.calls.append(-mem_size)
        with Hook() as hook:
            x = xp.zeros(3)
            del x
        xp.zeros(3)
        assert hook.calls == [512, -512]


def test_every_name_is_one_of_cupy_s():
    cupy = pytest.importorskip("cupy")

    def public(thing):
        return {name for name in dir(thing) if not name.startswith("_")}
    assert set(vars(xp.cuda)) <= public(cupy.cuda)
    for name, own in {"Device": set(), "Stream": {"flush", "later", "ready"}, "Event": set(), "Graph": set(), "MemoryHook": set(),
                      "MemoryPool": set(), "MemoryPointer": set(), "PinnedMemoryPool": set()}.items():
        assert public(getattr(xp.cuda, name)) - own <= public(getattr(cupy.cuda, name))
    for name, mine in vars(xp.cuda.runtime).items():
        if isinstance(mine, int) and name != "COUNT":
            assert mine == getattr(cupy.cuda.runtime, name)
        elif callable(mine) and mine.__module__ == "emulated.runtime_api":
            assert hasattr(cupy.cuda.runtime, name)
    for name in ("RawModule", "asnumpy", "get_default_memory_pool", "get_default_pinned_memory_pool"):
        assert hasattr(cupy, name) and hasattr(xp, name)
