"""Contract tests for anybody's step: what the host relies on, checked on a model of your choice.

from penjing.testing import check_step, small_context

def test_lottery_keeps_the_contract(tmp_path):
    check_step(Lottery(), torch_model(), small_context(tmp_path))
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.files import digest, sha256_of
from penjing.goal import Goal
from penjing.host import Host
from penjing.model import Model, Tensor
from penjing.options import build, options_of
from penjing.preprocess import Preprocess
from penjing.promise import NEEDS
from penjing.step import Backend, Context, Step, Technique
from penjing.store import Store

if TYPE_CHECKING:
    from torch import nn


#: how a photograph becomes the input of `small_model`
SMALL = Preprocess(resize=(32, 32))


def photographs(folder: Path, *, classes: int = 2, each: int = 6, size: int = 32) -> Path:
    """Fill `folder` with `each` small PNGs for each of `classes`, all different, and return it."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for index in range(classes):
        (folder / f"class{index}").mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 256, (size, size, 3), np.uint8)
            pixels[..., index % 3] //= 2
            Image.fromarray(pixels).save(folder / f"class{index}" / f"{number}.png")
    return folder


def torch_model(module: nn.Module, *, size: int = 32, channels: int = 3) -> Model:
    """Return a module as the host hands it to a step: in eval mode, its input float32 [1, channels, size, size]."""
    state = [value.detach().numpy().tobytes() for value in module.state_dict().values()]
    shape = (1, channels, size, size)
    preprocess = Preprocess(resize=(size, size), channels="RGB" if channels == 3 else "L")
    module.eval()
    return Model(
        "torch", module, "testing", digest(str(module), *state), (Tensor("input", shape),), (), preprocess
    )


def small_model(folder: Path, form: str = "torch") -> Model:
    """Return a network of two classes for 32 x 32 photographs in form "torch", or "onnx" as a file in `folder`."""
    model = torch_model(small_network())
    if form == "torch":
        return model
    work = folder / "small-model"
    work.mkdir()
    context = dataclasses.replace(small_context(work), data=None)
    return build(Host().step("onnx.export"), "onnx.export", {}).apply(model, context)


def small_network(seed: int = 0) -> nn.Module:
    """Return the network of `small_model`: as a source it is `penjing.testing:small_network`."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 2),
        )
    return nn.Sequential(*layers)


def small_context(folder: Path, *, device: str = "x86-64-avx2", backend: Backend | None = None) -> Context:
    """Return a context for a device and its backend, with some photographs of two classes, below `folder`.

    They are enough for every split. The original model, from which a step that trains may learn, is of the kind that
    `small_model` returns, with other weights.
    """
    from penjing.data import open_data

    host = Host()
    target = host.device(device)
    data = open_data(photographs(folder / "photographs", each=36), outputs=2)
    work = folder / "work"
    work.mkdir()
    return Context(
        target,
        Goal(),
        data,
        work,
        backend or host.backend(target.backend),
        original=torch_model(small_network(1)),
        open=lambda source: host.open(source.name, weights=source.weights, preprocess=SMALL),
    )


def check_step(step: Step, model: Model, context: Context) -> Model:
    """Assert that `step` keeps its contract on `model`, and return what it made of it.

    Its declaration is complete; it returns the form it promised; it never changes the model it was given and
    writes only into `context.folder`; twice the same gives the same; and its result can be had again from the
    folder it left.
    """
    check_declaration(type(step))
    _check_options(step)
    assert model.form in step.accepts, f"{step.name} does not accept form {model.form!r}"
    before = _content(model), _traces(model)
    store = Store(context.folder / "run", context.open)

    with store.room() as folder:
        outside = _files(context.folder.parent, besides=folder)
        inner = _inside(context, folder)
        first = step.apply(model, inner)
        assert first.form == step.produces, (
            f"{step.name} promised {step.produces!r} and returned {first.form!r}"
        )
        assert (_content(model), _traces(model)) == before, f"{step.name} changed the model it was given"
        assert _files(context.folder.parent, besides=folder) == outside, (
            f"{step.name} wrote outside context.folder"
        )
        _check_details(step, inner)
        content = _content(first)
        facts = {"options": dataclasses.asdict(step), "key": "0" * 64, "seconds": 0.0, "broken": []}  # type: ignore[call-overload]
        done = store.keep(step, "0" * 64, model, first, inner, facts)
    assert _content(done.model) == content, f"what {step.name} returned changes when it is stored"
    again = store.find(step, "0" * 64, model)
    assert again is not None, f"{step.name}'s result cannot be found again"
    assert _content(again.model) == content, f"what {step.name} returned cannot be had again from its folder"
    # without `needs`, photographs are no part of a result's key, so that it must not depend on them
    least = context if step.needs else dataclasses.replace(context, data=None)
    with store.room() as folder:
        second = _content(step.apply(model, _inside(least, folder)))
    assert second == content, (
        f"{step.name} does not give the same twice: draw from context.seed, "
        "and use photographs only where `needs` says so"
    )
    return again.model


def check_declaration(kind: type[Step]) -> None:
    """Assert that name, forms, needs and options of a step are declared as the host and its documentation want."""
    assert dataclasses.is_dataclass(kind), f"{kind.__name__} is no dataclass"
    assert issubclass(kind, Technique | Backend), f"{kind.__name__} is neither Technique nor Backend"
    assert kind.name == kind.name.lower().strip(), f"{kind.name!r} is not lower case"
    assert kind.__doc__, f"{kind.name} has no docstring; the plan shows its first line"
    assert isinstance(kind.accepts, frozenset), f"{kind.name}.accepts is no frozenset"
    assert kind.accepts, f"{kind.name} accepts nothing"
    assert kind.needs <= NEEDS, f"{kind.name} needs {sorted(kind.needs - NEEDS)}, which nobody provides"
    options = options_of(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    assert fields == set(options), f"fields of {kind.name} that are no option(…): {fields - set(options)}"
    for name, option in options.items():
        assert option.help, f"{kind.name}.{name} has no help"
        option.read(option.default)


def _check_options(step: Step) -> None:
    kind = type(step)
    values = {name: getattr(step, name) for name in options_of(kind)}
    assert build(kind, step.name, values) == step, f"{step.name} cannot be built from its own options"
    assert hash(step) == hash(build(kind, step.name, values)), f"{step.name} is not frozen"
    naive = step.naive()
    assert naive is None or type(naive) is kind, f"{step.name}.naive() returns another kind of step"


def _check_details(step: Step, context: Context) -> None:
    try:
        json.dumps(context.details, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"context.details of {step.name} are no JSON: {error}") from error


def _inside(context: Context, folder: Path) -> Context:
    return dataclasses.replace(context, folder=folder, warnings=[], details={}, exhibits=[], scratch=None)


def _content(model: Model) -> str:
    """Return a digest of all that a step must not change."""
    if isinstance(model.value, Path):
        return sha256_of(model.value)
    if model.form != "torch":
        return digest(repr(model.value))
    parts: list[Any] = [
        str(model.value),
        str(sorted((n, m.training) for n, m in model.value.named_modules())),
    ]
    for name, tensor in model.value.state_dict().items():
        parts += [name, str(tensor.dtype), str(tuple(tensor.shape)), tensor.detach().cpu().numpy().tobytes()]
    parts.append(str([(name, parameter.requires_grad) for name, parameter in model.value.named_parameters()]))
    return digest(*parts)


def _traces(model: Model) -> list[Any]:
    """Return what training or looking into a module leaves on it, which storing its result does not keep."""
    if model.form != "torch":
        return []
    return [
        *(
            (name, len(m._forward_hooks) + len(m._forward_pre_hooks))
            for name, m in model.value.named_modules()
        ),
        *((name, parameter.grad is None) for name, parameter in model.value.named_parameters()),
    ]


def _files(folder: Path, *, besides: Path) -> dict[str, str]:
    return {
        str(path): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_relative_to(besides)
    }
