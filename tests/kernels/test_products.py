"""Products of matrices shared out over the pool, without compiled kernels."""

import numpy as np
import pytest

from minidl import kernels, pool
from minidl.kernels import products


@pytest.fixture(autouse=True)
def reference():
    pytest.importorskip("threadpoolctl", reason="pool.threads needs threadpoolctl: pip install 'minidl[fast]'")
    with kernels.using("reference"):
        yield


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(400, 300, 200), (130, 200, 700), (17, 900, 5), (0, 3, 4), (1000, 1, 1000)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_is_the_product_on_any_number_of_threads(dtype, shape, turned, count):
    rows, depth, columns = shape
    draw = np.random.default_rng(rows).standard_normal
    a = draw((rows, depth)).astype(dtype)
    b = draw((columns, depth)).astype(dtype).T if turned else draw((depth, columns)).astype(dtype)
    with pool.threads(count):
        y = kernels.matmul(a, b)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, a.astype("float64") @ b, rtol=0, atol=1e-3 if dtype == "float32" else 1e-11)


def test_batches_of_matrices_and_other_dtypes_are_numpys():
    a, b = np.ones((3, 300, 300), np.float32), np.ones((300, 300))
    with pool.threads(2):
        y = kernels.matmul(a, b)
    assert y.shape == (3, 300, 300) and y.dtype == np.float64 and (y == 300).all()


@pytest.mark.parametrize(("activation", "of"), [(None, lambda z: z), ("relu", lambda z: np.maximum(z, 0)), ("tanh", np.tanh)])
def test_affine(activation, of):
    draw = np.random.default_rng(0).standard_normal
    x, w, b = draw((300, 200)), draw((200, 100)), draw(100)
    with pool.threads(2):
        np.testing.assert_allclose(kernels.affine(x, w, b, activation), of(x @ w + b), atol=1e-11)
        np.testing.assert_allclose(kernels.affine(x, w, None, activation), of(x @ w), atol=1e-11)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 33, 1000])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_shares_cover_everything_once(length, count):
    covered = [i for share in products.shares(length, count) for i in range(share.start, share.stop)]
    assert covered == list(range(length))
    assert len(products.shares(length, count)) <= count
