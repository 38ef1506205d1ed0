"""TensorRT's INT8 calibration cache: a text file with a scale for each tensor, for releases up to 10.

    TRT-100300-EntropyCalibration2
    input: 3c010204

The scale's float32 bits stand as eight hexadecimal digits, the highest first; a tensor's range is 127 scales either
way. (NVIDIA/TensorRT samples/common/sampleEngines.cpp; NVIDIA/Deep-Learning-Accelerator-SW tools/qdq-translator.)
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from collections.abc import Mapping

from penjing.errors import InputError

#: the only calibrator that the DLA takes (IInt8EntropyCalibrator2)
ALGORITHM = "EntropyCalibration2"
ALGORITHMS = ("EntropyCalibration2", "EntropyCalibration", "MinMaxCalibration", "LegacyCalibration")
#: bytes; a cache of a hundred thousand tensors is shorter
LARGEST = 2**24
_HEADER = re.compile(r"TRT-(\d{4,7})-(\w+)")


@dataclasses.dataclass(frozen=True)
class Cache:
    """The scales of a network's tensors, for one release of TensorRT."""

    version: tuple[int, int, int]
    scales: Mapping[str, float]
    algorithm: str = ALGORITHM

    def __post_init__(self) -> None:
        """Raise InputError for what no cache can say."""
        if self.algorithm not in ALGORITHMS:
            raise InputError(f"TensorRT has no calibrator {self.algorithm!r}.", hint=", ".join(ALGORITHMS))
        major, minor, patch = self.version
        if not (1 <= major <= 99 and 0 <= minor <= (99 if major >= 10 else 9) and 0 <= patch <= 99):
            raise InputError(
                f"{'.'.join(map(str, self.version))} is no release of TensorRT with calibration caches."
            )
        for name, scale in self.scales.items():
            if not name or not name.isascii() or not name.isprintable() or name != name.strip():
                raise InputError(
                    f"The tensor name {name!r} cannot stand in a calibration cache: it is no plain ASCII."
                )
            if not (math.isfinite(scale) and scale > 0) or _bits(scale) in ("00000000", "7f800000"):
                raise InputError(
                    f"The scale of {name} is {scale}; a scale is positive, finite, and fits float32."
                )

    def write(self) -> str:
        """Return the text of the file."""
        lines = [f"TRT-{_number(self.version)}-{self.algorithm}"]
        lines += [f"{name}: {_bits(scale)}" for name, scale in self.scales.items()]
        return "\n".join(lines) + "\n"


def read(text: str) -> Cache:
    """Return what a cache says; InputError names the line that is none."""
    if len(text) > LARGEST:
        raise InputError(f"A calibration cache of {len(text)} letters is no such thing.")
    head, *rest = text.split("\n")
    found = _HEADER.fullmatch(head.rstrip("\r"))
    if found is None:
        raise InputError(
            "This is no calibration cache: its first line is not TRT-VERSION-CALIBRATOR.",
            hint="An example: TRT-100300-EntropyCalibration2.",
        )
    scales: dict[str, float] = {}
    for number, raw in enumerate(rest, 2):
        line = raw.rstrip("\r")
        if not line:
            continue
        name, colon, digits = line.rpartition(": ")
        if not colon or not re.fullmatch(r"[0-9a-fA-F]{1,8}", digits):
            raise InputError(f"Line {number} of the calibration cache is not NAME: HEX: {line[:80]!r}.")
        if name in scales:
            raise InputError(f"Line {number} of the calibration cache names {name} again.")
        scales[name] = float(struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0])
    return Cache(_version(int(found[1])), scales, found[2])


def _bits(scale: float) -> str:
    try:
        return struct.pack(">f", scale).hex()
    except OverflowError:
        return "7f800000"  # which is infinity


def _number(version: tuple[int, int, int]) -> int:
    """Return the number that stands for a release: 8.5.2 is 8502, 10.3.0 is 100300."""
    major, minor, patch = version
    return major * (10_000 if major >= 10 else 1_000) + minor * 100 + patch


def _version(number: int) -> tuple[int, int, int]:
    major, rest = divmod(number, 10_000 if number >= 100_000 else 1_000)
    return major, rest // 100, rest % 100
