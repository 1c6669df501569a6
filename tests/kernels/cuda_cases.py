"""What the twins of kernels/cuda are given in the tests, kernel by kernel, and how near their results must be. test_cuda.py runs them.

    case("sum_pool2d", draws.sum_pool2d)

enters a kernel by what is drawn for it: a function from a Draw to the arguments of the reference, with float32 arrays, which are cast to
the dtype that is tested. A kernel may have several entries, by different names.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import draws
from minidl import kernels

EXAMPLES = 8
TABLE = {}


@dataclass(frozen=True)
class Case:
    kernel: str
    draw: Callable                          # Draw -> the arguments
    units: float = 8                        # of rounding, of the largest number, by which a result may be off
    halves: float = 1                       # the same in units of a dtype of 16 bits, for results of that dtype
    writes: tuple[int, ...] = ()            # the arguments that are written to, and compared
    beside: tuple[int, ...] = ()            # those that stay float32 beside x of 16 bits, in every second example
    apart: tuple[int, ...] = ()             # those that always do
    product: bool = False                   # whether the second argument is rounded to x's dtype
    wide: bool = False                      # whether results are float32 where x has 16 bits
    spoilt: bool = True                     # NaN and infinities are among the numbers of some examples
    examples: int = EXAMPLES
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16")
    declines: Callable = lambda *args: False                # whether the twin may decline, beside empty arrays
    within: Callable = contextlib.nullcontext               # what is in force meanwhile
    twin: Callable = lambda twin, *args: twin(*args)        # how it is called
    reference: Callable | None = None       # unless it is the one of that name


def case(kernel: str, draw: Callable, name: str = "", **options: Any) -> None:
    """Enter a case of a kernel into the table. name: where there are several of a kernel. options: see Case."""
    TABLE[name or kernel] = Case(kernel, draw, **options)


def reference(case: Case) -> Callable:
    """What the results are held against."""
    return case.reference or getattr(kernels, case.kernel).__wrapped__


case("max_pool2d", draws.max_pool2d, units=0, halves=0)
case("max_pool2d_scatter", draws.max_pool2d_scatter)
case("max_pool2d_gather", draws.max_pool2d_gather)
case("sum_pool2d", draws.sum_pool2d)
case("sum_pool2d_spread", draws.sum_pool2d_spread)
case("activation", draws.activation, writes=(0,), declines=lambda z, name: not z.flags.c_contiguous)
case("activation_gradient", draws.activation_gradient)
case("dropout", draws.dropout)
case("dropout_gradient", draws.dropout_gradient)
case("channel_sums", draws.channel_sums, units=20, wide=True)
case("batch_norm", draws.batch_norm, units=400, beside=(1, 2))
case("batch_norm_inference", draws.batch_norm_inference, units=20, beside=(1, 2, 3, 4))
case("batch_norm_gradient", draws.batch_norm_gradient, units=100, beside=(2, 3, 4, 6, 7))
case("layer_norm", draws.layer_norm, units=400, beside=(1, 2))
case("layer_norm_gradient", draws.layer_norm_gradient, units=200, beside=(2, 3, 4, 7, 8))
case("softmax_cross_entropy", draws.softmax_cross_entropy, wide=True)
case("softmax_cross_entropy_gradient", draws.softmax_cross_entropy_gradient, apart=(3,))
case("sgd_update", draws.sgd_update, writes=(0, 2))
case("sgd_update", draws.plain_sgd_update, name="sgd_update without velocity", writes=(0,))
case("adam_update", draws.adam_update, units=20, writes=(0, 2, 3))
case("sgd_update_many", draws.sgd_updates, writes=(0,), twin=lambda twin, calls: twin(calls, lambda: calls),
     reference=lambda calls: [kernels.sgd_update.__wrapped__(*call) for call in calls])
case("adam_update_many", draws.adam_updates, units=20, writes=(0,), twin=lambda twin, calls: twin(calls, lambda: calls),
     reference=lambda calls: [kernels.adam_update.__wrapped__(*call) for call in calls])
case("clip_many", draws.clip_many, units=20, writes=(0,), spoilt=False)
case("clip_many", draws.clip_many, name="clip_many's numbers", units=20, dtypes=("float64", "float32"),
     twin=lambda twin, gradients, most: twin([g.copy() for g in gradients], most).astype(gradients[0].dtype))
case("unscale_many", draws.unscale_many, writes=(0,))
case("unscale_many", draws.unscale_many, name="unscale_many's flag", dtypes=("float64", "float32"),
     twin=lambda twin, gradients, factor: twin([g.copy() for g in gradients], factor))
case("running_statistics", draws.running_statistics, dtypes=("float64", "float32"))
case("right_answers", draws.right_answers)
case("scaled_sum", draws.scaled_sum, units=20)
case("concatenate", draws.concatenate, units=0, halves=0)


def convolutions(kernel: str, draw: Callable, **options: Any) -> None:
    """Enter a convolution by every algorithm. One that adds the bias in a launch of its own rounds twice: see test_cuda_convolution.py."""
    for algorithm in (None, "im2col", "implicit"):
        rounds_once = algorithm == "implicit" or kernel == "conv2d_weights"
        case(kernel, draw, name=f"{kernel} {algorithm or 'as it chooses'}", twin=lambda twin, *args, a=algorithm: twin(*args[:-1], a),
             reference=lambda *args: getattr(kernels, kernel).__wrapped__(*args[:-1]), units=60, examples=6,
             dtypes=("float32", "float16") if rounds_once else ("float32",), **options)


convolutions("conv2d", draws.conv2d, beside=(1, 4), product=True)
convolutions("conv2d_input", draws.conv2d_input, beside=(1, 5), product=True)
convolutions("conv2d_weights", draws.conv2d_weights, wide=True)
case("conv2d_patch_moments", draws.conv2d_patch_moments, units=60, wide=True)
case("matmul", draws.matmul, units=200, beside=(1,), product=True)
case("affine", draws.affine, units=200, dtypes=Case.dtypes[:2])
case("affine_weights", draws.affine_weights, units=200, wide=True)
case("windows", draws.windows, units=0, halves=0)
