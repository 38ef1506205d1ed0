"""The ARM acceptance: a bundle under emulation of a Raspberry Pi's CPU. It fetches Debian packages, so it is asked for.

Run with `PENJING_ARM64=CACHE pytest -m arm64`, where CACHE is a folder that keeps what was fetched; it needs
qemu-user-static, apt-get and dpkg (Debian, Ubuntu).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

#: what the script runs, by the package of Debian that brings it
PROGRAMS = {
    "qemu-user-static": ("qemu-aarch64-static", "qemu-aarch64"),
    "apt": ("apt-get",),
    "dpkg": ("dpkg",),
}
SCRIPT = Path(__file__).parents[2] / "scripts" / "arm64-check"


@pytest.mark.arm64
def test_a_bundle_answers_the_same_on_the_cpus_of_raspberry_pis(
    make: Callable[..., Path], photographs: Path
) -> None:
    cache = os.environ.get("PENJING_ARM64")
    if not cache:
        pytest.skip("PENJING_ARM64 names no folder for what is fetched")
    if missing := [package for package, names in PROGRAMS.items() if not any(map(shutil.which, names))]:
        pytest.skip(f"not installed here: {', '.join(missing)}")
    photos = [str(path) for path in sorted(photographs.rglob("*.png"))[:3]]
    command = [
        sys.executable,
        str(SCRIPT),
        str(make(here=False, arch="aarch64")),
        *photos,
        "--cache",
        cache,
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [result["cpu"] for result in results] == ["cortex-a72", "cortex-a76"]
    assert all(result["ok"] and result["same"] == 3 for result in results)


def test_a_bundle_for_another_architecture_is_refused(make: Callable[..., Path]) -> None:
    command = [sys.executable, str(SCRIPT), str(make(arch="x86_64"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (2, "error: The bundle is not for ONNX Runtime on ARM.\n")
