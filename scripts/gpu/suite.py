"""The test suite on the device: every test that is multiplied over devices, and those of the kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]
WHERE = ("tests/functions", "tests/nn", "tests/kernels", "tests/optim", "tests/test_capture.py", "tests/test_recording.py",
         "tests/parallel/test_device_staging.py")


def run(device: str, seconds: float) -> dict[str, Any]:
    """Run the tests whose names hold a device, for so many seconds at most: its number, too, as files of tests are called after "cuda".

    Gives the last line that pytest prints, the counts in it, the names of what failed, and whether it came to its end.
    """
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--tb=line",
               "--continue-on-collection-errors", "-k", device, *WHERE]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")]), "PYTHONUNBUFFERED": "1"}
    try:
        done = subprocess.run(command, cwd=TOP, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=seconds)
        said, ended = done.stdout, True
    except subprocess.TimeoutExpired as late:
        said, ended = (late.stdout or b"").decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or "", False
    lines = [line for line in said.splitlines() if line.strip()]
    summary = lines[-1] if lines else ""
    return {
        "ended": ended,
        "summary": summary.strip("= "),
        "counts": {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?|deselected)", summary)},
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))][:40],
        "end of the output": lines[-15:] if not ended or "passed" not in summary else [],
    }
