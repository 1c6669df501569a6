"""The parts of scripts/gpu_check: what minidl does on a GPU, held against NumPy and against PyTorch on the same device.

    machine.py      the device and the versions; ceilings.py, how fast it can copy and multiply at all
    equal.py        every function and layer against NumPy; training.py, whole runs against the CPU's
    suite.py        the test suite
    compiled.py     every kernel once, before anything is timed; together.py, several processes on the device, which compile beside
                    one another
    clock.py        sides that take turns, timed by the device's events
    bandwidth.py    kernels that only move numbers
    networks.py     training steps; layers.py, single convolutions of large networks; theirs.py, PyTorch's side
    table.py        all of it as one table

Needed are NumPy, CuPy, pytest and hypothesis; without PyTorch there is nothing to compare speed with.
"""
