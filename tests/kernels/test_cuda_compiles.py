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
from minidl.kernels.cuda import source
from test_cuda import arguments, run, there

if emulated.WHY_NOT or nvrtc.library() is None:
    pytest.skip(emulated.WHY_NOT or "it takes nvidia-cuda-nvrtc", allow_module_level=True)

TUNED, OLDEST, SKETCHED = "sm_90", "sm_80", "compute_90"
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
            for dtype in case.dtypes:
                patch.setattr(source, "FAR", 0 if dtype == "bfloat16" else 2**31)           # so that few sets have each value
                for example in range(case.examples):
                    run(entry, there(arguments(entry, example, dtype), "emulated:0"))
    return found


@pytest.fixture(scope="module")
def logs(variants):
    """(file, macros, architecture) -> what the compiler says of the kernels.

    Where speed does not count, in float64 and for places of 64 bits, it stops at PTX: the rest takes it most of the time.
    """
    wanted = [(file, macros, SKETCHED if {("T", "double"), ("I", "long long")} & set(macros) else TUNED)
              for file, sets in variants.items() for macros in covering(sets)]
    wanted += [(file, macros, OLDEST) for file, macros, _ in wanted if "mma" in source._file(f"{file}.cu") and ("T", "half_t") in macros]

    def log(file, macros, architecture):
        told = () if architecture == SKETCHED else ("--ptxas-options=-v",)
        return nvrtc.compiled(source.text(file, macros), *source.OPTIONS, f"--gpu-architecture={architecture}", *told)
    with ThreadPoolExecutor(2) as workers:
        return dict(zip(wanted, workers.map(lambda each: log(*each), wanted)))


def covering(sets):
    """A few of the sets, in which each value of each macro is: most of them with float, which is compiled fast."""
    chosen, covered = [], set()
    for macros in sorted(sets, key=lambda macros: ("float", "half_t", "bfloat_t", "double").index(dict(macros)["T"])):
        if not covered.issuperset(macros):
            chosen.append(macros)
            covered |= set(macros)
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
