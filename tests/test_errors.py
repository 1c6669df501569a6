import pickle

import numpy as np
import pytest

from minidl import errors, nn
from minidl.errors import MinidlError, ShapeError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MinidlError) and kind is not MinidlError]


class Failing(nn.Module):
    """A layer that raises the error it was made with."""

    def __init__(self, **facts):
        self.facts = facts

    def forward(self, x):
        raise ShapeError("fail: wrong", **self.facts)


def raised_in(module):
    with pytest.raises(ShapeError) as caught:
        module(np.zeros(1))
    return str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if MinidlError in kind.__bases__])
def test_each_kind_is_also_an_error_of_python_s(kind):
    ours, python_s = kind.__bases__
    assert ours is MinidlError
    assert python_s.__module__ == "builtins"


class TestText:
    def test_is_one_sentence_where_there_is_no_more(self):
        assert str(MinidlError("add: wrong")) == "add: wrong"

    def test_has_facts_on_one_line_and_then_what_to_try(self):
        error = ShapeError("conv2d: x has 4 channels, w expects 3", x=(2, 4), groups=1, hint="Give inputs=4.")
        assert str(error) == "conv2d: x has 4 channels, w expects 3\n  x: (2, 4)    groups: 1\n  Give inputs=4."

    def test_names_the_layer_that_is_running(self):
        assert raised_in(nn.Sequential(nn.Flatten(), Failing())) == "fail: wrong\n  in layer 1 (Failing)"

    def test_names_the_whole_path_of_a_layer(self):
        model = nn.Sequential(nn.Sequential(nn.ReLU(), Failing(hint="Try again.")))
        assert raised_in(model) == "fail: wrong\n  in layer 0.1 (Failing)\n  Try again."

    def test_names_a_layer_that_was_called_by_itself_by_its_kind(self):
        assert raised_in(Failing()) == "fail: wrong\n  in layer Failing"

    def test_survives_the_way_from_a_worker_process(self):
        error = ShapeError("add: wrong", a=(2, 3), hint="Try again.")
        assert str(pickle.loads(pickle.dumps(error))) == str(error)

    def test_names_no_layer_after_it_has_run(self):
        raised_in(Failing())
        assert str(ShapeError("add: wrong")) == "add: wrong"
