"""Arrays of a device, given to a communicator: through the host, or from where they are if MPI takes them."""

import ctypes
import types

import numpy as np
import pytest
from late import DEVICE
from ranks import on_ranks

from minidl import backend
from minidl.errors import ConfigError, ExchangeError
from minidl.parallel import cuda_aware, local, mpi
from minidl.parallel.on_device import elsewhere


def there(x):
    return backend.asarray(np.asarray(x), DEVICE)


def numbers_of(x):
    assert elsewhere(x) or isinstance(x, np.ndarray)
    return backend.to_numpy(x).tolist()


def talk(communicator):
    """Each operation, with arrays of a device on all sides or on one."""
    rank, other = communicator.rank, 1 - communicator.rank
    found = []
    for out, into in (there([1.5, rank]), there([0.0, 0.0])), (np.array([2.5, rank]), there([0.0, 0.0])), (there([3.5, rank]), np.zeros(2)):
        communicator.wait([communicator.irecv(into, other, 3), communicator.isend(out, other, 3)])
        found.append(numbers_of(into))
    found.append(numbers_of(communicator.broadcast(there([7, 7 + rank]), root=1)))
    found.append(numbers_of(communicator.allgather(there([[rank]]))))
    every = there(np.zeros((2, 1)))
    communicator.wait([communicator.iallgather(np.array([rank + 4.0]), every)])
    found.append(numbers_of(every))
    return found


def expected(rank):
    return [[1.5, 1 - rank], [2.5, 1 - rank], [3.5, 1 - rank], [7, 8], [[[0]], [[1]]], [[4], [5]]]


@on_ranks(2)
def test_between_two_ranks(communicator):
    assert not communicator.direct
    assert talk(communicator) == expected(communicator.rank)


def test_what_is_no_array_of_plain_numbers_is_told_what_to_do():
    with pytest.raises(ExchangeError, match="only arrays of plain numbers travel, NumPy's or CuPy's") as told:
        local.run(lambda communicator: communicator.isend([1, 2], 0), 1)
    assert "np.asarray(x)" in str(told.value)
    with pytest.raises(ExchangeError, match="its rows do not lie one after the other") as told:
        mpi.memory(there(np.zeros((3, 4))).T, "isend")
    assert "strict.ascontiguousarray(x)" in str(told.value)


class Comm:
    """mpi4py's, as far as messages go: it notes what it was given, and when the device had been waited for."""

    def __init__(self, log):
        self.log = log

    def Set_errhandler(self, handler):
        pass

    def Get_rank(self):
        return 0

    Get_size = Get_rank

    def Isend(self, what, peer, tag):
        self.log.append((type(what[0]), len(what[0]), peer, tag))
        return types.SimpleNamespace(Test=lambda status: True)

    Irecv = Isend


class Status:
    def Get_count(self, kind):
        return 16


def test_an_mpi_that_takes_them_is_given_them_once_the_device_has_done_its_work(monkeypatch):
    log = []
    fake = types.SimpleNamespace(__file__="mpi.so", BYTE="byte", ERRORS_RETURN=0, TAG_UB=0, Exception=ZeroDivisionError, Status=Status,
                                 COMM_WORLD=types.SimpleNamespace(Get_attr=lambda key: 1 << 20))
    monkeypatch.setattr(mpi, "library", lambda: fake)
    monkeypatch.setattr(mpi, "cuda_aware", lambda library: library == "mpi.so")
    monkeypatch.setattr(mpi, "check_peer", lambda *args: None)
    monkeypatch.setitem(vars(backend.library_named(DEVICE)), "synchronize", lambda: log.append("the device is done"))
    communicator, x = mpi.MPICommunicator(Comm(log)), there([1.0, 2.0])
    assert communicator.direct
    assert communicator.isend(x, 1, 5).done() and communicator.irecv(x, 1, 6).done()
    assert log == ["the device is done", (type(x), 16, 1, 5), "the device is done", (type(x), 16, 1, 6)]
    log.clear()
    communicator.isend(np.zeros(2), 1, 5)
    assert log == [(np.ndarray, 16, 1, 5)]


class TestCudaAware:
    @pytest.fixture(autouse=True)
    def _asked_anew(self, monkeypatch):
        monkeypatch.delenv(cuda_aware.VARIABLE, raising=False)
        cuda_aware.cuda_aware.cache_clear()
        yield
        cuda_aware.cuda_aware.cache_clear()

    @pytest.mark.parametrize("answer", [0, 1])
    def test_open_mpi_is_asked(self, answer):
        assert cuda_aware.said(types.SimpleNamespace(MPIX_Query_cuda_support=lambda: answer)) == bool(answer)

    @pytest.mark.parametrize(("status", "answer"), [(0, 1), (0, 0), (16, 1)])
    def test_mpich_is_asked(self, status, answer):
        def query(kind, out):
            ctypes.cast(out, ctypes.POINTER(ctypes.c_int))[0] = answer
            return status

        assert cuda_aware.said(types.SimpleNamespace(MPIX_GPU_query_support=query)) == (status == 0 and answer == 1)

    def test_one_that_says_nothing_is_not(self):
        assert not cuda_aware.said(types.SimpleNamespace())

    @pytest.mark.parametrize("word", ["0", "1"])
    def test_whoever_runs_it_knows_better(self, monkeypatch, word):
        monkeypatch.setenv(cuda_aware.VARIABLE, word)
        monkeypatch.setattr(cuda_aware, "said", pytest.fail)
        assert cuda_aware.cuda_aware("mpi.so") == (word == "1")

    def test_or_is_told_that_the_word_is_none(self, monkeypatch):
        monkeypatch.setenv(cuda_aware.VARIABLE, "yes")
        with pytest.raises(ConfigError, match="MINIDL_CUDA_AWARE=yes is not known"):
            cuda_aware.cuda_aware("mpi.so")
