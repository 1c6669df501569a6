"""A run in words, before it begins. Whole announcements are looked at where the command is: test_train.py, test_train_ranks.py."""

from types import SimpleNamespace

import pytest

from minidl import announce
from minidl.options import EXCHANGE

USUAL = {"optimizer": "sgd", "clip": None, "batch_size": 32, "dtype": "float32", "loss_scale": None, "device": "cpu", "asked_device": "cpu"}
PINNED = "gradients go through pinned host memory: "


class TestExchangeDescribed:
    """What is said of many processes."""

    @pytest.mark.parametrize("processes, changes, lines", [
        (4, {}, ["4, allreduce, overlap backward"]),
        (4, {"exchange": "master-worker", "overlap": "none", "compress": "int8"}, ["4, master-worker, int8"]),
        (4, {"compress": "fp16", "feedback": False, "sync_batch_norm": True},
         ["4, allreduce, overlap backward, fp16 without feedback, batch normalization over all"]),
        (4, {"elastic": True, "spares": 1}, ["3, and 1 to stand in, allreduce, overlap backward"]),
        (4, {"elastic": True}, ["4 as long as one lives, allreduce, overlap backward"]),
        (4, {"exchange": "master-worker", "master_computes": False, "overlap": "forward"},
         ["4, master-worker whose master only adds up, overlap forward"]),
        (4, {"overlap": "forward", "clip": 1.0},
         ["4, allreduce, overlap backward", "not overlap forward: --clip needs all of the gradient before any weight changes"]),
        (2, {"overlap": "forward", "optimizer": "kfac"},
         ["2, allreduce, overlap backward", "not overlap forward: kfac needs all of the gradient before any weight changes"]),
        (2, {"overlap": "forward", "dtype": "float16"},
         ["2, allreduce, overlap backward", "not overlap forward: loss scaling needs all of the gradient before any weight changes"]),
        (4, {"batch_size": 3}, ["4, allreduce, overlap backward", "1 of them will be idle: there are 3 examples in a minibatch"]),
        (4, {"batch_size": 3, "exchange": "master-worker", "master_computes": False},
         ["4, master-worker whose master only adds up, overlap backward"]),
    ])
    def test_who_trains_and_how(self, processes, changes, lines):
        options = SimpleNamespace(**{**EXCHANGE, **USUAL, **changes})
        assert [text for _, text in announce.exchange_described(options, processes)] == lines

    @pytest.mark.parametrize("cuda_aware, changes, line", [
        (False, {"asked_device": "cuda"}, f"each has a GPU of its host's; {PINNED}this MPI is not CUDA-aware"),
        (False, {}, f"{PINNED}this MPI is not CUDA-aware"),
        (True, {}, "gradients go from GPU to GPU: this MPI is CUDA-aware"),
        (True, {"compress": "int8"}, f"{PINNED}they are compressed there"),
    ])
    def test_how_gradients_get_from_gpu_to_gpu(self, cuda_aware, changes, line):
        options = SimpleNamespace(**{**EXCHANGE, **USUAL, "device": "cuda:0", "asked_device": "cuda:0", **changes})
        assert [text for _, text in announce.exchange_described(options, 4, cuda_aware)][1:] == [line]
