"""How an image becomes the input of a model.

The table in TOML and JSON is the same everywhere:

resize = [176, 176]        # height, width; or one number: the short side; absent: none
crop = 160                 # centre crop, one number or [height, width]; absent: none
interpolation = "bilinear" # or "bicubic", "nearest"; antialiased as Pillow does
scale = 0.00392156862745   # multiplies 0…255
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
channels = "RGB"           # or "BGR", "L"
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import toml
from penjing.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image
    from typing_extensions import Self

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
#: mean and std of ImageNet in the order of the channels; grey takes the average of the three
IMAGENET = {
    "RGB": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "BGR": ((0.406, 0.456, 0.485), (0.225, 0.224, 0.229)),
    "L": ((0.449,), (0.226,)),
}
MAX_SIDE = 8192
#: a strip of 1×5000 pixels, enlarged until its short side is 256, would take a gigabyte
MAX_PIXELS = 2**26
MAX_FILE = 2**16

_NOTES = {
    "resize": "height, width; or one number: the short side; absent: none",
    "crop": "centre crop, one number or [height, width]; absent: none",
    "interpolation": "bilinear, bicubic or nearest, antialiased as Pillow does",
    "scale": "multiplies 0…255",
    "mean": "subtracted after scaling, in the order of the channels",
    "std": "divides at the end",
    "channels": "RGB, BGR or L",
}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What is done to an image, in the order of the fields, before it goes in as float32 NCHW.

    `mean` and `std` have a number for each channel, in the order of `channels`; left empty they become
    ImageNet's. Raises InputError where a field cannot be.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: str = "RGB"

    def __post_init__(self) -> None:
        _one_of("channels", self.channels, IMAGENET)
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        for name, default in zip(("mean", "std"), IMAGENET[self.channels], strict=True):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))) or default)
            if len(getattr(self, name)) != len(self.channels):
                raise InputError(
                    f"{name} has {len(getattr(self, name))} numbers, but channels = {self.channels!r} "
                    f"needs {len(self.channels)}.",
                    hint=f"For ImageNet: {name} = {list(default)}.",
                )
        _check_numbers(self)
        _check_sides(self)

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Self:
        """Read the table; InputError names the field at fault."""
        if not isinstance(table, dict):
            raise InputError(f"The preprocessing must be a table, not {type(table).__name__}.")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in table:
            if key not in known:
                raise InputError(
                    f"The preprocessing has no field {key!r}.", hint=did_you_mean(str(key), known)
                )
        return cls(**{name: _read(name, value) for name, value in table.items()})

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read the table from a TOML file; InputError names the file."""
        try:
            with path.open("rb") as file:
                text = file.read(MAX_FILE + 1)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
        if len(text) > MAX_FILE:
            raise InputError(f"{path} is larger than {MAX_FILE // 1024} KiB: no preprocessing is.")
        try:
            return cls.from_dict(toml.loads(text.decode()))
        except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}.") from error
        except InputError as error:
            raise InputError(f"{path}: {error.message}", hint=error.hint) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the table in types that JSON and TOML have; what is absent is left out."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if value is not None
        }

    def to_toml(self) -> str:
        """Return the table as TOML, each line with its meaning."""
        lines = {name: f"{name} = {_toml(value)}" for name, value in self.to_dict().items()}
        width = max(map(len, lines.values()))
        return "".join(f"{line:{width}}  # {_NOTES[name]}\n" for name, line in lines.items())

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the result; None where they follow the image's own."""
        if self.crop is not None:
            return _pair(self.crop)
        return self.resize if isinstance(self.resize, tuple) else None

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return the image as float32 CHW."""
        result: npt.NDArray[np.float32] = self.normalise(self.pixels(image)[None])[0]
        return result

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Return the image resized and cropped as uint8 HWC, its channels in the order of the model's.

        Equals torchvision's Resize and CenterCrop on a PIL image, black borders included.
        """
        import numpy as np
        from PIL.Image import Resampling

        image = image.convert("L" if self.channels == "L" else "RGB")
        if self.resize is not None:
            height, width = self._resized(image.height, image.width)
            image = image.resize((width, height), Resampling[self.interpolation.upper()])
        if self.crop is not None:
            height, width = _pair(self.crop)
            top, left = _margin(image.height, height), _margin(image.width, width)
            image = image.crop((left, top, left + width, top + height))
        array = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, len(self.channels))
        return np.ascontiguousarray(array[..., ::-1] if self.channels == "BGR" else array)

    def normalise(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return uint8 NHWC as float32 NCHW: (x · scale - mean) / std."""
        import numpy as np

        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        result: npt.NDArray[np.float32] = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), dtype=np.float32)
        result *= np.float32(self.scale)
        result -= mean
        result /= std
        return result

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        assert self.resize is not None
        short, long = sorted((height, width))
        longer = int(self.resize * long / short)
        if self.resize * longer > MAX_PIXELS:
            raise InputError(f"{width}×{height} pixels, too long a strip for a short side of {self.resize}.")
        return (self.resize, longer) if height <= width else (longer, self.resize)


def _margin(have: int, want: int) -> int:
    """Return where a centred window begins; negative where it is wider, and Pillow fills with black."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


def _pair(sides: int | tuple[int, int]) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides


def _one_of(name: str, value: object, known: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} = {value!r} is not known.", hint=did_you_mean(str(value), known))


def _check_numbers(wanted: Preprocess) -> None:
    for name, values in (("scale", (wanted.scale,)), ("mean", wanted.mean), ("std", wanted.std)):
        if not all(math.isfinite(value) and abs(value) <= 1e9 for value in values):
            raise InputError(f"{name} must be finite and at most 1e9.")
        if name != "mean" and any(abs(value) < 1e-9 for value in values):
            raise InputError(f"{name} must not be zero.")


def _check_sides(wanted: Preprocess) -> None:
    for name, sides in (("resize", wanted.resize), ("crop", wanted.crop)):
        if sides is not None and not all(1 <= side <= MAX_SIDE for side in _pair(sides)):
            raise InputError(f"{name} = {sides} must lie between 1 and {MAX_SIDE} pixels.")
    if wanted.resize is None or wanted.crop is None:
        return
    crop = _pair(wanted.crop)
    # of a short side alone it is unknown which side it is
    room = wanted.resize if isinstance(wanted.resize, tuple) else (wanted.resize, max(crop))
    need = crop if isinstance(wanted.resize, tuple) else (min(crop), max(crop))
    if need[0] > room[0] or need[1] > room[1]:
        raise InputError(
            f"crop = {wanted.crop} is larger than resize = {wanted.resize}: images would get black borders.",
            hint="Height comes before width.",
        )


def _read(name: str, value: Any) -> Any:
    """Return a field's value from TOML or JSON as the field's type; InputError where it is not."""
    if name in ("resize", "crop"):
        if _is_int(value):
            return value
        if isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_int, value)):
            return tuple(value)
        raise InputError(f"{name} takes a whole number or [height, width], not {value!r}.")
    if name == "scale":
        if not _is_number(value):
            raise InputError(f"scale takes a number, not {value!r}.")
        return _as_float(name, value)
    if name in ("mean", "std"):
        if not isinstance(value, list | tuple) or not value or not all(map(_is_number, value)):
            raise InputError(f"{name} takes a list of numbers, one for each channel, not {value!r}.")
        return tuple(_as_float(name, item) for item in value)
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(name: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError as error:  # an integer of more than 308 digits
        raise InputError(f"{name} must be finite and at most 1e9.") from error


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(repr, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)
