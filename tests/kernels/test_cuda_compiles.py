"""Every CUDA file is compiled by NVIDIA's own compiler for the GPU that minidl is tuned for, with the macros that calls really give it.

Which macros these are is found by making the calls of cuda_cases.py, with nothing in the kernels' places. Of the many sets a few are
compiled, in which each value of each macro comes up.
"""

import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

import emulated
import nvrtc
from cuda_cases import TABLE
from minidl import kernels
from minidl.kernels import cuda
from minidl.kernels.cuda import source
from test_cuda import arguments, there

if emulated.WHY_NOT or nvrtc.library() is None:
    pytest.skip(emulated.WHY_NOT or "it takes nvidia-cuda-nvrtc", allow_module_level=True)

TUNED, OLDEST, SKETCHED = "sm_90", "sm_80", "compute_90"
SKETCHES = {("T", "double"), ("I", "long long")}            # where speed does not count
ORDER = ("float", "half_t", "bfloat_t", "double")
CALLS = [("float32", False, False), ("float32", False, True), ("float16", False, False), ("bfloat16", False, False),
         ("float64", False, False), ("float32", True, False)]            # dtype, whether places are of 64 bits, whether TF32 is allowed
SPILLS = {"implicit": 64}       # bytes that a kernel may put into memory: some registers are worth a second block beside the first


@pytest.fixture(scope="module")
def variants():
    """The sets of macros with which each file is called."""
    found = defaultdict(dict)

    def function(xp, device, file, name, macros):
        found[file][macros] = None
        return lambda *args, **kwargs: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "function", function)
        patch.setattr(source, "compiled", source.compiled.__wrapped__)                      # else it is not asked twice, and keeps ours
        for entry, case in TABLE.items():
            for dtype, far, tf32 in CALLS:
                patch.setattr(source, "FAR", 0 if far else 2**31)
                for example in range(case.examples):
                    with kernels.allow_tf32(tf32):
                        case.twin(cuda.TWINS[case.kernel], *there(arguments(entry, example, dtype), "emulated:0"))
    return found


@pytest.fixture(scope="module")
def logs(variants):
    """(file, macros, architecture) -> what the compiler says of the kernels.

    Where speed does not count it stops at PTX: the rest takes it most of the time.
    """
    wanted = [(file, macros, SKETCHED if SKETCHES & set(macros) else TUNED)
              for file, sets in variants.items() for macros in covering(sets)]
    wanted += [(file, macros, OLDEST) for file, macros, _ in wanted if "mma" in source._file(f"{file}.cu") and ("T", "half_t") in macros]

    def log(file, macros, architecture):
        told = () if architecture == SKETCHED else ("--ptxas-options=-v",)
        return nvrtc.compiled(source.text(file, macros), *source.OPTIONS, f"--gpu-architecture={architecture}", *told)
    with ThreadPoolExecutor(2) as workers:
        return dict(zip(wanted, workers.map(lambda each: log(*each), wanted)))


def covering(sets):
    """A few of the sets, in which each value of each macro is: most of them with float and int, which are compiled fast."""
    sets = sorted(sets, key=lambda macros: (len(SKETCHES & set(macros)), ORDER.index(dict(macros)["T"])))
    chosen, left = [], set().union(*sets)
    while left:
        chosen.append(max(sets, key=lambda macros: len(left & set(macros))))
        left -= set(chosen[-1])
    return chosen


def test_every_file_is_compiled(logs):
    there_are = {path.stem for path in source.HERE.glob("*.cu")}
    assert {file for file, _, architecture in logs if architecture == TUNED} == there_are
    assert {architecture for _, _, architecture in logs} == {TUNED, OLDEST, SKETCHED}


def test_registers_suffice_where_speed_counts(logs):
    logs = {key: log for key, log in logs.items() if key[2] != SKETCHED}
    assert all(log.count("Compiling entry function") == log.count("bytes spill stores") > 0 for log in logs.values())
    spilt = {key: log for key, log in logs.items() if max(map(int, re.findall(r"(\d+) bytes spill stores", log))) > SPILLS.get(key[0], 0)}
    assert not spilt, "\n".join(f"{key}:\n{log}" for key, log in spilt.items())


def test_nothing_is_worth_a_warning(logs):
    assert not {key: log for key, log in logs.items() if "warning" in log}
