"""The emulated GPU computes what a GPU does, and tells of what a GPU would not."""

import ctypes

import numpy as np
import pytest

import emulated
from emulated import xp
from minidl import backend

if emulated.WHY_NOT:
    pytest.skip(emulated.WHY_NOT, allow_module_level=True)

COMMON = """
struct half_t { unsigned short bits; };
struct bfloat_t { unsigned short bits; };
"""


def kernel(code, name="k", *options):
    return xp.RawModule(code=COMMON + code, options=("--std=c++17", *options)).get_function(name)


def there(x, dtype=None):
    return backend.asarray(np.asarray(x, dtype), "emulated:0")


def back(x):
    return backend.to_numpy(x)


def elsewhere():
    with xp.cuda.Device(1):
        return xp.zeros(1, np.float32)


class TestThreads:
    @pytest.mark.parametrize("threads", [(32,), (256,), (8, 4, 4)])
    def test_of_a_block_add_up(self, threads):
        add = kernel("""
        extern "C" __global__ void k(const float* x, float* y, int n) {
            __shared__ float parts[32];
            int me = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z), all = blockDim.x * blockDim.y * blockDim.z;
            float s = 0;
            for (int i = blockIdx.x * n + me; i < (blockIdx.x + 1) * n; i += all) s += x[i];
            for (int lane = 16; lane; lane /= 2) s += __shfl_xor_sync(0xffffffff, s, lane);
            if (me % 32 == 0) parts[me / 32] = s;
            __syncthreads();
            if (me == 0) for (int i = 1; i < all / 32; i++) s += parts[i];
            if (me == 0) y[blockIdx.x] = s;
        }""")
        x, y = np.arange(3000, dtype=np.float32).reshape(3, 1000), xp.empty(3, np.float32)
        add((3,), threads, (there(x), y, np.int32(1000)))
        np.testing.assert_array_equal(back(y), x.sum(axis=1))

    def test_of_a_warp_exchange_numbers(self):
        exchange = kernel("""
        extern "C" __global__ void k(int* y) {
            int me = threadIdx.x;
            y[me] = __shfl_sync(0xffffffff, me, 3);
            y[me + 32] = __shfl_sync(0xffffffff, me, 1, 8);
            y[me + 64] = __shfl_up_sync(0xffffffff, me, 2);
            y[me + 96] = __shfl_down_sync(0xffffffff, me, 2, 16);
            y[me + 128] = __shfl_xor_sync(0xffffffff, me, 5);
            y[me + 160] = (int)__ballot_sync(0xffffffff, me % 3 == 0);
            y[me + 192] = __any_sync(0xffffffff, me == 9) * 2 + __all_sync(0xffffffff, me < 31);
            if (me < 8) y[me + 224] = __shfl_sync(0xff, me, 7);
        }""")
        y, lanes = there(np.zeros(256), np.int32), np.arange(32)
        exchange((1,), (32,), (y,))
        y = back(y).reshape(8, 32)
        np.testing.assert_array_equal(y[0], 3)
        np.testing.assert_array_equal(y[1], lanes // 8 * 8 + 1)
        np.testing.assert_array_equal(y[2], np.where(lanes < 2, lanes, lanes - 2))
        np.testing.assert_array_equal(y[3], np.where(lanes % 16 < 14, lanes + 2, lanes))
        np.testing.assert_array_equal(y[4], lanes ^ 5)
        np.testing.assert_array_equal(y[5].view(np.uint32), sum(1 << i for i in range(0, 32, 3)))
        np.testing.assert_array_equal(y[6], 2)
        np.testing.assert_array_equal(y[7, :8], 7)

    @pytest.mark.parametrize(("body", "says"), [
        ("if (threadIdx.x < 7) return; __syncthreads();", "threads 0 to 6 have returned; threads 7 to 63 wait at line 5 for the block"),
        ("if (threadIdx.x < 7)\n__syncthreads();\nelse\n__syncthreads();",
         "threads 0 to 6 wait at line 6 for the block; threads 7 to 63 wait at line 8"),
        ("if (threadIdx.x != 7) __syncwarp();", "lane 7, which has returned"),
        ("if (threadIdx.x != 40) __syncwarp();\nelse __syncthreads();",
         "threads 32 to 39 wait at line 5 for their warp; threads 40 to 40 wait at line 6 for the block"),
        ("if (threadIdx.x % 2) __syncwarp(); else __ballot_sync(0xffffffff, 1);", "do different things"),
        ("__syncwarp(2);", "lane 0 is not in the mask 0x2"),
    ])
    def test_that_wait_for_what_never_comes_are_an_error(self, body, says):
        with pytest.raises(RuntimeError, match=says):
            kernel(f'extern "C" __global__ void k() {{\n{body} }}')((1,), (64,), ())

    def test_in_reverse_show_that_a_barrier_is_missing(self):
        shift = kernel("""
        extern "C" __global__ void k(int* y) {
            __shared__ int all[64];
            all[threadIdx.x] = threadIdx.x;
            if (threadIdx.x) y[threadIdx.x] = all[threadIdx.x - 1];
        }""")
        y, z = (there(np.zeros(64), np.int32) for _ in range(2))
        shift((1,), (64,), (y,))
        with emulated.backwards():
            shift((1,), (64,), (z,))
        assert (back(y)[1:] == np.arange(63)).all() and (back(z)[1:] == -1).all()


class TestMemory:
    def test_that_is_shared_is_unknown_at_first(self):
        read = kernel("""
        extern "C" __global__ void k(float* y, int n) {
            __shared__ float fixed[64];
            extern __shared__ float dynamic[];
            y[2 * blockIdx.x] = fixed[threadIdx.x + 5], y[2 * blockIdx.x + 1] = dynamic[n - 1];
            fixed[threadIdx.x + 5] = dynamic[n - 1] = 3;
        }""")
        y = there(np.zeros(4), np.float32)
        read((2,), (1,), (y, np.int32(10)), shared_mem=40)
        assert np.isnan(back(y)).all()

    def test_that_is_new_is_unknown(self):
        for x in (xp.empty(5, np.float32), xp.empty_like(there(np.zeros(3), np.float64))):
            assert np.isnan(back(x)).all()

    @pytest.mark.parametrize(("body", "says"), [
        ("x[10] = 1;", "an array of 40 bytes is written to beyond its end"), ("x[-1] = 1;", "before its beginning"),
        ("extern __shared__ float z[]; z[4] = 1;", "shared memory is written to beyond its end: byte 16 of 16"),
        ("__shared__ float z[8]; z[threadIdx.x * 0 + n] = 1;", "source, line .*: a place beyond an array"),
        ("*(float4*)(x + 1) = make_float4(1, 2, 3, 4);", "a misaligned address"), ("x[(long long)n << 40] = 1;", "an access faults"),
        ("float* p = nullptr; *p = n;", "an access faults|null"), ("x[0] = 2000000000 + n * 20000000;", "an integer sum overflows"),
        ("x[0] = 1 << (n + 30);", "a shift by more bits"), ("x[0] = 1 / (n - 8);", "divided by zero"),
    ])
    def test_that_is_not_the_kernel_s_to_touch(self, body, says):
        x = there(np.zeros(10), np.float32)
        touch = kernel(f'extern "C" __global__ void k(float* x, int n) {{ {body} }}')
        with pytest.raises(RuntimeError, match=f"k: .*({says})"):
            touch((1,), (1,), (x, np.int32(8)), shared_mem=16)
        kernel('extern "C" __global__ void k(float* x) { x[9] = 1; }')((1,), (1,), (x,))          # one error is told once
        assert back(x)[9] == 1

    def test_begins_where_vectors_may(self):
        assert all(there(np.zeros(n), np.int8).data.ptr % 512 == 0 for n in (1, 5, 1000))
        assert xp.ones((3, 5), np.float32)[1].data.ptr % 512 == 20


class TestArguments:
    CODE = 'extern "C" __global__ void k(float* x, const half_t* h, void* any, int n, float a, bool b) { x[0] = n + a + b; }'

    def arguments(self, **changed):
        good = {"x": there([0], np.float32), "h": there([0], np.float16), "any": there([0], np.int64), "n": np.int32(1), "a": np.float32(2),
                "b": np.bool_(True)}
        return tuple((good | changed).values())

    def test_as_they_should_be(self):
        args = self.arguments(h=np.uint64(0))
        kernel(self.CODE)((1,), (1,), args)
        assert back(args[0])[0] == 4

    @pytest.mark.parametrize(("changed", "says"), [
        ({"more": np.int32(1)}, "6 parameters, and is given 7"), ({"h": lambda: there([0], np.int16)}, "points to half_t"),
        ({"x": lambda: there([0], np.float64)}, "array of float64, the parameter points to float32"),
        ({"n": 1}, "argument 3 is int64, the parameter is an integer of 32 bits"),
        ({"n": np.float32(1)}, "argument 3 is float32"), ({"a": 2.0}, "argument 4 is float64"), ({"b": np.int32(1)}, "argument 5 is int32"),
        ({"x": np.zeros(1, np.float32)}, "argument 0 is a NumPy array"), ({"n": lambda: there([0], np.int32)}, "argument 3 is an array"),
        ({"x": np.int64(5)}, "argument 0 is int64"), ({"x": np.uint64(4096)}, "outside all arrays"), ({"x": None}, "Unsupported type"),
        ({"x": lambda: there(np.zeros((4, 4)), np.float32).T}, "not contiguous"), ({"x": lambda: elsewhere()}, "on device 1"),
    ])
    def test_that_are_wrong(self, changed, says):
        with pytest.raises((TypeError, ValueError), match=says):
            kernel(self.CODE)((1,), (1,), self.arguments(**{name: x() if callable(x) else x for name, x in changed.items()}))

    @pytest.mark.parametrize(("grid", "block", "shared"), [
        ((1,), (1025,), 0), ((1, 65536), (32,), 0), ((1,), (1, 1, 65), 0), ((0,), (32,), 0), ((1,), (129,), 0), ((1,), (32,), 49 * 1024)])
    def test_of_a_launch_that_no_gpu_takes(self, grid, block, shared):
        bound = kernel('extern "C" __global__ void __launch_bounds__(128) k() {}')
        with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
            bound(grid, block, (), shared_mem=shared)
        bound.max_dynamic_shared_size_bytes = 50 * 1024
        bound((1,), (128,), (), shared_mem=50 * 1024)


class TestNumbersOf16Bits:
    def test_halves(self):
        widen = kernel('extern "C" __global__ void k(const unsigned short* x, float* y) '
                       "{ int i = blockIdx.x * 256 + threadIdx.x; y[i] = half_to_float(x[i]); }")
        bits, y = np.arange(2**16, dtype=np.uint16), xp.empty(2**16, np.float32)
        widen((256,), (256,), (there(bits), y))
        np.testing.assert_array_equal(back(y), bits.view(np.float16).astype(np.float32))

    def test_are_rounded_to_the_nearest(self):
        narrow = kernel('extern "C" __global__ void k(const float* x, unsigned short* y, unsigned* z) '
                        "{ int i = blockIdx.x * 256 + threadIdx.x; y[i] = float_to_half(x[i]); z[i] = to_tf32(x[i]); }")
        halves = np.arange(0x7c00, dtype=np.uint16).view(np.float16).astype(np.float32)
        between = (halves[1:] + halves[:-1]) / 2
        x = np.concatenate([halves, between, np.nextafter(between, 0), np.nextafter(between, 1e9), [65519, 65520, 1e30, np.inf, -1e-30]])
        x = np.resize(np.concatenate([x, -x]).astype(np.float32), 2**18)
        y, z = xp.empty(2**18, np.uint16), xp.empty(2**18, np.uint32)
        narrow((1024,), (256,), (there(x), y, z))
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(back(y), x.astype(np.float16).view(np.uint16))
        found = back(z).view(np.float32)[np.isfinite(x)]
        assert (back(z) & 0x1fff == 0).all()
        np.testing.assert_allclose(found, x[np.isfinite(x)], rtol=2.0**-11)


class TestTensorCores:
    CODE = """
    extern "C" __global__ void k(const unsigned* a, const unsigned* b, float* d) {         // by fragments, as ptx.cuh says
        int g = threadIdx.x / 4, t = threadIdx.x % 4;
        unsigned x[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4], a[(g + 8) * 8 + t + 4]};
        unsigned y[2] = {b[g * 8 + t], b[g * 8 + t + 4]};
        float z[4] = {1, 1, 1, 1};
        MMA(z, x, y);
        d[g * 8 + 2 * t] = z[0], d[g * 8 + 2 * t + 1] = z[1], d[(g + 8) * 8 + 2 * t] = z[2], d[(g + 8) * 8 + 2 * t + 1] = z[3];
    }"""

    @pytest.mark.parametrize(("name", "dtype", "depth"), [
        ("mma_f16", "float16", 16), ("mma_bf16", "bfloat16", 16), ("mma_tf32", "float32", 8)])
    def test_multiply(self, name, dtype, depth):
        draw = np.random.default_rng(0)
        a, b = (draw.integers(-30, 30, (n, depth)).astype(backend.dtype_named(dtype)) for n in (16, 8))
        d = xp.empty((16, 8), np.float32)
        kernel(self.CODE, "k", f"-DMMA={name}")((1,), (32,), (there(a.view(np.uint32)), there(b.view(np.uint32)), d))
        np.testing.assert_array_equal(back(d), a.astype(np.float32) @ b.astype(np.float32).T + 1)

    def test_read_19_bits_of_tf32(self):
        a, b, d = np.full((16, 8), 1 + 2**-10 + 2**-12, np.float32), np.eye(8, dtype=np.float32), xp.empty((16, 8), np.float32)
        kernel(self.CODE, "k", "-DMMA=mma_tf32")((1,), (32,), (there(a.view(np.uint32)), there(b.view(np.uint32)), d))
        np.testing.assert_array_equal(back(d), 2 + 2**-10)

    def test_load_their_matrices(self):
        load = kernel("""
        extern "C" __global__ void k(const unsigned short* x, unsigned* y) {
            __shared__ __align__(16) unsigned short all[256];
            for (int i = threadIdx.x; i < 256; i += 32) all[i] = x[i];
            __syncwarp();
            unsigned r[4];
            load_matrices(r, all + threadIdx.x * 8);
            for (int i = 0; i < 4; i++) y[i * 32 + threadIdx.x] = r[i];
        }""")
        x, y = np.arange(256, dtype=np.uint16).reshape(4, 8, 8), xp.empty(128, np.uint32)
        load((1,), (32,), (there(x), y))
        np.testing.assert_array_equal(back(y).view(np.uint16).reshape(4, 8, 8), x)


TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}         # as cuBLAS counts them


class TestCublas:
    def multiply(self, m, n, k, ta, tb, dtype, result=None, compute=None, beta=0.0, batch=2, short=0):
        """C = 2 op(A) op(B) + beta C by columns, with room in every leading dimension; and the same by NumPy."""
        draw, kind = np.random.default_rng(0), backend.dtype_named(dtype)
        a, b, c = (draw.integers(-9, 9, (batch, *shape)).astype(kind) for shape in ((m if ta else k, (k if ta else m) + 3),
                                                                                  (k if tb else n, (n if tb else k) + 1), (n, m + 2)))
        c = c.astype(backend.dtype_named(result or dtype))
        compute = compute or (70 if dtype == "float64" else 68)
        one = ctypes.c_double if compute == 70 else ctypes.c_float
        library, handle, x, y, z = xp.cublas_library, ctypes.c_void_p(), there(a), there(b), there(c)
        assert library.cublasCreate_v2(ctypes.byref(handle)) == 0
        assert library.cublasSetStream_v2(handle, xp.cuda.get_current_stream().ptr) == 0
        status = library.cublasGemmStridedBatchedEx(
            handle, int(ta), int(tb), m, n, k, ctypes.byref(one(2)), x.data.ptr, TYPES[dtype], a.shape[2] - short, a[0].size,
            y.data.ptr, TYPES[dtype], b.shape[2], b[0].size, ctypes.byref(one(beta)), z.data.ptr, TYPES[str(c.dtype)], c.shape[2],
            c[0].size, batch, compute, -1)
        op = [x.astype(np.float64)[:, :, :rows].transpose(0, *((1, 2) if turned else (2, 1)))
              for x, rows, turned in ((a, k if ta else m, ta), (b, n if tb else k, tb))]
        wanted = c.astype(np.float64)
        wanted[:, :, :m] = (2 * op[0] @ op[1]).transpose(0, 2, 1) + (beta * wanted[:, :, :m] if beta else 0)
        return status, back(z), wanted

    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize(("ta", "tb"), [(False, False), (True, False), (False, True), (True, True)])
    def test_products(self, dtype, ta, tb):
        status, found, wanted = self.multiply(3, 4, 5, ta, tb, dtype, beta=1.0)
        assert status == 0
        np.testing.assert_array_equal(found, wanted.astype(found.dtype))

    def test_wide_results_of_16_bits(self):
        status, found, wanted = self.multiply(3, 4, 200, False, True, "bfloat16", "float32")
        assert status == 0 and found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted)

    def test_a_leading_dimension_that_cannot_be(self):
        assert self.multiply(3, 4, 5, False, False, "float32", short=4)[0] == 7

    def test_dtypes_that_do_not_go_together(self):
        assert self.multiply(3, 4, 5, False, False, "float16", "float64")[0] == 15

    def test_matrices_beyond_their_array(self):
        with pytest.raises(ValueError, match="does not lie in an array"):
            self.multiply(3, 4, 5, False, False, "float32", short=-1)
