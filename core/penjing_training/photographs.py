"""Photographs for training: decoded once, kept in memory where they fit, cropped and mirrored anew in each epoch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from penjing.data import WORKERS, Split
from penjing.errors import InputError, StepError
from penjing.photos import decode, pillow_warnings, read_photo
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

if TYPE_CHECKING:
    import numpy.typing as npt
    from penjing.preprocess import Preprocess
    from penjing.step import Progress
    from PIL import Image

    from penjing_training.options import TrainingOptions

#: bytes of decoded photographs that are kept, in all processes of a machine together; others are decoded each time
CACHE = 2 * 2**30
#: width over height of a random crop, as in torchvision's recipes
RATIO = (3 / 4, 4 / 3)

#: epoch, and which photograph
Key = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Inputs float32 [N, C, H, W]; targets int64 [N], or float32 [N, classes] where mixed, or None."""

    inputs: Tensor
    targets: Tensor | None


def seed_of(*parts: object) -> int:
    """Return a seed that depends on all the parts and on nothing else."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")


class Pixels:
    """The photographs of a split, each as `read` makes it: uint8 [C, H, W]."""

    def __init__(
        self,
        split: Split,
        read: Callable[[Image.Image], npt.NDArray[np.uint8]],
        progress: Progress,
        bound: int,
    ) -> None:
        self._read = read
        self._kept: list[Tensor | None] = []
        self._paths = []
        self.labels: list[int] = []
        progress.begin(f"decoding {split.name} photographs", len(split))
        sound = [photo for photo in split.photos if photo.path not in split.broken]
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(sound), 64):  # what is read ahead is bounded too
                chunk = sound[start : start + 64]
                with pillow_warnings():
                    found = list(pool.map(lambda photo: self._try(photo.path), chunk))
                for photo, pixels in zip(chunk, found, strict=True):
                    progress.advance()
                    if isinstance(pixels, str):
                        split.broken.add(photo.path, pixels)
                        continue
                    bound -= pixels.nbytes
                    self._kept.append(pixels if bound >= 0 else None)
                    self._paths.append(photo.path)
                    self.labels.append(-1 if photo.label is None else photo.label)
        progress.end(f"{len(self)} photographs")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        kept = self._kept[index]
        if kept is not None:
            return kept
        try:
            return self._tensor(read_photo(self._paths[index]))
        except InputError as error:
            raise StepError(f"{error.message} It could be read a while ago.") from error

    def _try(self, path: object) -> Tensor | str:
        try:
            return self._tensor(decode(path))  # type: ignore[arg-type]  # a Path, which lambda hides
        except InputError as error:
            return error.message

    def _tensor(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(self._read(image).transpose(2, 0, 1).copy())


class Augmented(Dataset[tuple[Tensor, int]]):
    """Photographs as they are trained on: a random crop of the size for use, maybe mirrored.

    What is drawn depends on the seed, the epoch and the photograph alone: not on the order, nor on who asks.
    """

    def __init__(
        self, pixels: Pixels, size: tuple[int, int], options: TrainingOptions, how: str, seed: int
    ) -> None:
        self._pixels, self._seed = pixels, seed
        mode = InterpolationMode(how)
        crop: v2.Transform = v2.CenterCrop(list(size))
        if options.crop < 1:
            crop = v2.RandomResizedCrop(list(size), (options.crop, 1), RATIO, mode, antialias=True)
        self._change = v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if options.flip else 0.0)])

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        epoch, index = key
        torch.default_generator.manual_seed(seed_of(self._seed, "photograph", epoch, index))
        return self._change(self._pixels[index]), self._pixels.labels[index]


@dataclasses.dataclass(frozen=True)
class Normalise:
    """Turn uint8 [N, C, H, W] into the network's input on `device`, as `Preprocess.normalise` does."""

    preprocess: Preprocess
    device: torch.device

    def __call__(self, pixels: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, device=self.device).view(-1, 1, 1)
            for values in (self.preprocess.mean, self.preprocess.std)
        )
        inputs = pixels.to(self.device).float()
        inputs = (inputs * self.preprocess.scale - mean) / std
        return inputs.contiguous(memory_format=torch.channels_last)


def lay_out(network: nn.Module) -> nn.Module:
    """Return `network` with its tensors of four dimensions laid out as inputs are, which is fast; others stay."""
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


@dataclasses.dataclass(frozen=True)
class Course:
    """Which photographs each step of training sees, and which of them are this process's."""

    photographs: int
    options: TrainingOptions
    seed: int
    rank: int
    world: int

    @property
    def batch(self) -> int:
        """Return the photographs in a step, in all processes together."""
        return min(self.options.batch_size, self.photographs)

    @property
    def per_epoch(self) -> int:
        """Return the steps in an epoch; photographs that fill no batch wait for another epoch."""
        return max(1, self.photographs // self.batch)

    @property
    def steps(self) -> int:
        """Return all steps."""
        return self.options.epochs * self.per_epoch

    def parts(self, step: int) -> Iterator[list[Key]]:
        """Yield the parts in which this process computes its share of a step."""
        epoch, place = divmod(step, self.per_epoch)
        order = _order(self.photographs, seed_of(self.seed, "order", epoch))
        share = order[place * self.batch : (place + 1) * self.batch].tolist()[self.rank :: self.world]
        count = min(self.options.accumulate, len(share))
        for part in range(count):
            yield [(epoch, index) for index in share[part::count]]


@functools.lru_cache(
    2
)  # every step asks for that of its epoch, which is long where there are many photographs
def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def load(dataset: Augmented, course: Course, start: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pixels uint8 [N, C, H, W] and labels int64 [N] of every part from step `start` on."""
    keys = (part for step in range(start, course.steps) for part in course.parts(step))
    yield from DataLoader(dataset, batch_sampler=keys, num_workers=workers)


def mixed(batch: Batch, alpha: float, classes: int) -> Batch:
    """Return photographs mixed in pairs, and their targets too (Zhang et al., mixup, 2018)."""
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    inputs = batch.inputs * share + batch.inputs.flip(0) * (1 - share)
    if batch.targets is None:
        return Batch(inputs, None)
    targets = torch.nn.functional.one_hot(batch.targets, classes).float()
    return Batch(inputs, targets * share + targets.flip(0) * (1 - share))
