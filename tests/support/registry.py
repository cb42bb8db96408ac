"""The registry that pip is set up for: most tests need none, some cannot do without."""

import os
import subprocess
import sys
import tempfile

import pytest

SMALL = "h11"  # as good as any


def need_registry() -> None:
    """Skip the test where pip reaches no registry of packages; in CI that is a failure."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "--retries=1",
             "--timeout=20", "-d", folder, SMALL],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        reason = "pip reaches no registry of Python packages; connect the machine, or set PIP_INDEX_URL"
        assert not os.environ.get("FORBID_SKIPS"), f"{reason}: {done.stderr}"
        pytest.skip(reason)
