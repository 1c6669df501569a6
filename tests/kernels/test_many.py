"""Kernels for many arrays at a time, mostly where no twin takes them: on the CPU each call goes on its own, to the kernel that it is of."""

import numpy as np
import pytest

import emulated
from minidl import backend, kernels


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_updates_are_made_one_after_the_other(dtype):
    rng = np.random.default_rng(0)
    calls = [(rng.normal(size=n).astype(dtype), rng.normal(size=n).astype(dtype), rng.normal(size=n).astype(dtype), 0.1, 0.9, False, 0.01)
             for n in (1, 5, 40_000)]
    alone = [tuple(x.copy() if isinstance(x, np.ndarray) else x for x in call) for call in calls]
    kernels.sgd_update_many(lambda: calls)
    for call, single in zip(calls, alone):
        kernels.sgd_update(*single)
        for x, y in zip(call[:3], single[:3]):
            np.testing.assert_array_equal(x, y)


def test_clipping_scales_all_by_one_factor():
    gradients = [np.array([3.0], np.float32), np.array([4.0], np.float32)]
    np.testing.assert_allclose(kernels.clip_many(gradients, 1.0), [5, 0.2, 9, 16], rtol=1e-6)
    np.testing.assert_allclose(gradients, [[0.6], [0.8]], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_changes_nothing(bad):
    gradients = [np.array([3.0, bad]), np.array([4.0])]
    norm, factor, *_ = kernels.clip_many(gradients, 1.0)
    assert not np.isfinite(norm) and factor == 1
    np.testing.assert_array_equal(gradients[0], [3.0, bad])


def test_unscaling_tells_whether_all_is_finite():
    gradients = [np.array([3.0, 1.0], np.float32), np.array([[4.0]], np.float32)]
    assert kernels.unscale_many(gradients, 0.5)
    np.testing.assert_array_equal(gradients[0], [1.5, 0.5])
    gradients[1][...] = np.inf
    assert not kernels.unscale_many(gradients, 0.5)


@pytest.mark.skipif(bool(emulated.WHY_NOT), reason=emulated.WHY_NOT)
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_what_is_finite_is_asked_after_rounding(factor):
    gradients = [backend.asarray(np.full(5, 40_000, np.float16), "emulated:0")]
    assert bool(kernels.unscale_many(gradients, factor)) == (factor == 1)       # 80,000 is a float32, and no float16
    assert bool(np.isfinite(backend.to_numpy(gradients[0])).all()) == (factor == 1)
