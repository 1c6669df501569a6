"""The exponential of a vector, as a part of kernels.

Cody and Waite's: e^x = 2^n e^r, with n whole and r so small that a polynomial does, here that of S. Moshier's Cephes library. The error
is below two units in the last place.
"""

from __future__ import annotations

import numpy as np

from minidl.kernels.cpu.compiled import inner
from minidl.kernels.cpu.lanes import power, splat, where


@inner
def exponential(x):
    """e^x for x <= 0; 0 where it would be smaller than the smallest normal number."""
    least = splat(np.float32(-87.33))
    inside = where(x < least, least, x)
    shifted = inside * splat(np.float32(1.44269504)) + splat(np.float32(12582912))              # 1.5 * 2^23: rounds to whole numbers
    n = shifted - splat(np.float32(12582912))
    r = inside - n * splat(np.float32(0.693359375)) - n * splat(np.float32(-2.12194440e-4))     # log 2 in two parts
    y = splat(np.float32(1.9875691500e-4)) * r + splat(np.float32(1.3981999507e-3))
    y = y * r + splat(np.float32(8.3334519073e-3))
    y = y * r + splat(np.float32(4.1665795894e-2))
    y = y * r + splat(np.float32(1.6666665459e-1))
    y = y * r + splat(np.float32(5.0000001201e-1))
    y = y * (r * r) + r + splat(np.float32(1))
    return where(x < least, splat(np.float32(0)), y * power(shifted))
