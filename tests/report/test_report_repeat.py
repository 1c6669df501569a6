"""What is to be typed to have a run again."""

import pytest

from minidl.report.repeat import commands

TRAIN = "python -m minidl.train"


@pytest.mark.parametrize("typed, again", [
    ([TRAIN], [TRAIN]),
    ([f"{TRAIN} --epochs 3 --out runs/a"], [f"{TRAIN} --epochs 3"]),
    ([f"{TRAIN} --out=runs/a --lr 0.1"], [f"{TRAIN} --lr 0.1"]),
    ([f"{TRAIN} --epochs 3", f"{TRAIN} --resume runs/a"], [f"{TRAIN} --epochs 3"]),                # was only interrupted
    ([f"{TRAIN} --epochs 3", f"{TRAIN} --resume=runs/a"], [f"{TRAIN} --epochs 3"]),
    ([TRAIN, f"{TRAIN} --resume runs/a --epochs 9"], [TRAIN, f"{TRAIN} --resume RUN --epochs 9"]),
    (["mpiexec -n 2 " + TRAIN, f"mpiexec -n 2 {TRAIN} --resume=runs/a"], ["mpiexec -n 2 " + TRAIN]),
    (["python -m minidl.launch -n 2 -- --lr 1", "python -m minidl.launch -n 2 -- --resume a"], ["python -m minidl.launch -n 2 -- --lr 1"]),
    ([f"{TRAIN} --data 'my data.npz'"], [f"{TRAIN} --data 'my data.npz'"]),
    ([f"{TRAIN} 'half"], [f"'{TRAIN} '\"'\"'half'"]),
    ([], []),
])
def test_commands(typed, again):
    assert commands({"commands": typed})["typed"] == again


def test_with_every_option():
    assert commands({"commands": [], "repeat": "all"})["full"] == "all" and commands({"commands": []})["full"] is None
