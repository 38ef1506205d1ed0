"""Networks that a library builds by name: torchvision, timm, torch.hub."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from penjing.errors import InputError, did_you_mean, first_line
from penjing.preprocess import Preprocess

from penjing_torch.module import as_model
from penjing_torch.sources import make, split_query
from penjing_torch.weights import load_weights

if TYPE_CHECKING:
    from penjing.model import Model

RANDOM = "The weights are random: size and speed mean something, accuracy does not."


def open_torchvision(source: str, weights: Path | None, preprocess: Preprocess | None) -> Model:
    """Open `torchvision:NAME?key=value&…`, the values going to torchvision's builder of that name.

    Without a file of weights it takes torchvision's own; `weights=none` leaves them random.
    """
    from torchvision import models

    name, values = split_query(source, "torchvision:")
    known = models.list_models()
    if name not in known:
        raise InputError(f"torchvision has no model {name!r}.", hint=did_you_mean(name, known))
    entries = models.get_model_weights(name)
    wanted = values.pop("weights", "default")
    entry = _entry(entries, wanted, name)
    meta = entry.meta if entry else entries.DEFAULT.meta
    own = entry if weights is None else None
    if own is None and "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        values.setdefault("weights_backbone", None)  # else a detector fetches those of its backbone
    categories = tuple(meta.get("categories", ()))
    if own and values.get("num_classes", len(categories)) != len(categories):
        raise InputError(
            f"torchvision's weights of {name} know {len(categories)} classes, not {values['num_classes']}.",
            hint="Give your own with --weights FILE, or start from random ones with &weights=none.",
        )

    module = make(lambda: _fetched(lambda: models.get_model(name, weights=own, **values), source), source)
    if weights is not None:
        load_weights(module, weights)
    return as_model(
        module,
        source,
        preprocess or _from_transforms((entry or entries.DEFAULT).transforms()),
        labels=categories,
        warnings=(RANDOM,) if own is None and weights is None else (),
    )


def open_timm(source: str, weights: Path | None, preprocess: Preprocess | None) -> Model:
    """Open `timm:NAME?key=value&…`, the values going to `timm.create_model`.

    Without a file of weights it takes timm's own; `weights=none` leaves them random.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise InputError(f"{source} needs timm.", hint="pip install 'penjing[timm]'") from error
    name, values = split_query(source, "timm:")
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise InputError(f"timm has no model {name!r}.", hint=did_you_mean(name, known))
    wanted = values.pop("weights", "default")
    if wanted not in (None, "default"):
        raise InputError(
            f"{source}: weights is none or default.", hint="Choose others by name: timm:NAME.TAG."
        )
    own = weights is None and wanted == "default"
    if own and "num_classes" in values:
        raise InputError(
            f"{source}: timm's own weights have their own number of classes.",
            hint="Give yours with --weights FILE, or start from random ones with &weights=none.",
        )
    module = make(lambda: _fetched(lambda: timm.create_model(name, pretrained=own, **values), source), source)
    if weights is not None:
        load_weights(module, weights)
    return as_model(
        module,
        source,
        preprocess or _from_timm(timm.data.resolve_model_data_config(module)),
        warnings=() if own or weights is not None else (RANDOM,),
    )


def open_hub(source: str, weights: Path | None, preprocess: Preprocess | None) -> Model:
    """Open `hub:OWNER/REPO:ENTRY?key=value&…` or `hub:FOLDER:ENTRY`, through that repository's hubconf.py.

    This runs the repository's code. Naming it as the source is the user's consent; nothing else leads here.
    """
    import torch

    name, values = split_query(source, "hub:")
    repository, colon, entry = name.rpartition(":")
    if not colon or not repository or not entry:
        raise InputError(f"{source!r} is not hub:OWNER/REPO:ENTRY or hub:FOLDER:ENTRY.")
    local = Path(repository).is_dir()
    if local and not (Path(repository) / "hubconf.py").is_file():
        raise InputError(
            f"{repository} has no hubconf.py.", hint="For a plain file use path/model.py:factory."
        )
    if not local and (repository.count("/") != 1 or repository.startswith((".", "/"))):
        raise InputError(f"{repository} is neither a folder nor OWNER/REPO.")

    def build() -> Any:
        load: Callable[..., Any] = torch.hub.load
        place = "local" if local else "github"
        return load(repository, entry, source=place, trust_repo=True, verbose=False, **values)

    module = make(lambda: _fetched(build, source), source)
    if weights is not None:
        load_weights(module, weights)
    return as_model(module, source, preprocess)


def _entry(entries: Any, wanted: Any, name: str) -> Any:
    """Return the member of torchvision's enum of weights that is `wanted`; None for None."""
    if wanted is None:
        return None
    if wanted == "default":
        return entries.DEFAULT
    if wanted in entries.__members__:
        return entries[wanted]
    raise InputError(
        f"torchvision has no weights {wanted!r} of {name}.",
        hint=did_you_mean(str(wanted), [*entries.__members__, "none", "default"]),
    )


def _fetched(build: Callable[[], Any], source: str) -> Any:
    """Call `build`; what fails on the way from the network becomes an InputError that says what to do."""
    try:
        return build()
    except Exception as error:  # torch.hub and huggingface_hub, which timm uses, raise classes of their own
        foreign = type(error).__module__.split(".")[0] in ("huggingface_hub", "requests", "httpx", "urllib3")
        offline = isinstance(error, URLError | ConnectionError | TimeoutError) or "no internet" in str(error)
        if not (foreign or offline):
            raise
        raise InputError(
            f"{source} cannot be fetched: {first_line(error)}",
            hint="Connect to the network, give a file with --weights FILE, or try ?weights=none.",
        ) from error


def _from_transforms(transforms: Any) -> Preprocess | None:
    """Return torchvision's own transforms of some weights as data; None where they are not of that kind."""
    if not all(hasattr(transforms, field) for field in ("resize_size", "mean", "std", "interpolation")):
        return None
    resize, crop = transforms.resize_size, getattr(transforms, "crop_size", None)
    return Preprocess(
        resize=_side(resize),
        crop=_side(crop),
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _from_timm(config: dict[str, Any]) -> Preprocess:
    """Return timm's data config as data: resize of the short side to crop / crop_pct, then a centre crop."""
    height, width = config["input_size"][1:]
    crop = height if height == width else (height, width)
    share = config.get("crop_pct") or 1.0
    resize = (
        math.floor(height / share)
        if height == width
        else (math.floor(height / share), math.floor(width / share))
    )
    return Preprocess(
        resize=resize,
        crop=crop,
        interpolation=config.get("interpolation", "bicubic"),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _side(size: Any) -> int | tuple[int, int] | None:
    if size is None or isinstance(size, int):
        return size
    return size[0] if len(size) == 1 else (size[0], size[1])
