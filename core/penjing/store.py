"""What a finished step left in its folder, and how its model is had again from there. No pickles."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import promise, sealed
from penjing.errors import PluginError, first_line
from penjing.exhibit import to_dict
from penjing.files import inside, sha256_of, sync
from penjing.model import Model, Tensor
from penjing.report.schema import FieldError, check_told
from penjing.step import opens_nothing

if TYPE_CHECKING:
    from penjing.step import Context, Open, Step

RECORD = "step.json"
WEIGHTS = "weights.safetensors"
UNFINISHED = ".unfinished-"


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished step: its model, and its record as kept in step.json."""

    model: Model
    record: dict[str, Any]
    reused: bool


class Store:
    """The steps of one run, each in a folder named by what it depends on.

    One process at a time may write into it: the others say `reading`, and leave everything as it is. `open_model`
    opens the models that `Step.skeleton` asks for.
    """

    def __init__(self, root: Path, open_model: Open = opens_nothing, *, reading: bool = False) -> None:
        self.root, self.open_model = root, open_model
        self.folder = root / "steps"
        if reading:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)

    @contextmanager
    def room(self) -> Iterator[Path]:
        """Yield an empty folder to work in, which is gone afterwards unless `keep` took it."""
        folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def find(self, step: Step, key: str, model: Model) -> Done | None:
        """Return the finished step of that key, applied to `model`; None where it is not there, whole and unchanged."""
        folder = self._place(step, key)
        record = sealed.read(folder / RECORD)
        if record is None:
            return None
        for name, expected in record["files"].items():
            path = inside(folder, name)
            if not path.is_file() or sha256_of(path) != expected:
                return None
        return Done(self._restore(step, key, model, folder, record), record, reused=True)

    def keep(
        self, step: Step, key: str, before: Model, after: Model, context: Context, facts: dict[str, Any]
    ) -> Done:
        """Write down what `step` returned, and move its folder to where `find` sees it: all at once."""
        work = context.folder
        if link := next((path for path in work.rglob("*") if path.is_symlink()), None):
            raise PluginError(f"{step.name} left {link.name}, a link, which is no result to keep.")
        value = self._save(step, before, after, work)
        told = _told(step, after, context)
        files = {
            path.relative_to(work).as_posix(): sha256_of(path)
            for path in sorted(work.rglob("*"))
            if path.is_file()
        }
        record = {
            "name": step.name,
            "value": value,
            "files": files,
            **told,
            **facts,
        }
        sealed.write(work / RECORD, record)
        for path in work.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        place = self._place(step, key)
        shutil.rmtree(place, ignore_errors=True)
        work.rename(place)
        sync(self.folder)
        return Done(self._restore(step, key, before, place, record), record, reused=False)

    def _place(self, step: Step, key: str) -> Path:
        return self.folder / f"{step.name}-{key[:16]}"

    def _save(self, step: Step, before: Model, after: Model, work: Path) -> str | None:
        """Return where the value is kept: a path in `work`, or from the run's root; None for weights of a module."""
        if isinstance(after.value, Path):
            path = after.value.resolve()
            if not path.is_file():
                raise PluginError(f"{step.name} returned {after.value}, which is no file.")
            if path.is_relative_to(work.resolve()):
                return f"./{path.relative_to(work.resolve()).as_posix()}"
            if path == _path(before):
                return "unchanged"
            raise PluginError(f"{step.name} returned a file outside its own folder: {path}.")
        if after.value is before.value:
            return "unchanged"
        if after.form == "torch":
            from safetensors.torch import save_file

            state = {
                name: tensor.detach().clone().contiguous()
                for name, tensor in after.value.state_dict().items()
            }
            save_file(state, str(work / WEIGHTS))
            return None
        raise PluginError(
            f"{step.name} returned a model of form {after.form!r} that is neither a file nor a module.",
            hint="Return a Path in context.folder.",
        )

    def _restore(self, step: Step, key: str, before: Model, folder: Path, record: dict[str, Any]) -> Model:
        value = self._value(step, before, folder, record["value"])
        inputs, outputs = _tensors(record["inputs"]), _tensors(record["outputs"])
        return before.become(step.produces, value, fingerprint=key, inputs=inputs, outputs=outputs)

    def _value(self, step: Step, before: Model, folder: Path, value: str | None) -> Any:
        if value == "unchanged":
            return before.value
        if value is not None:
            return inside(folder, value)
        import copy

        from safetensors.torch import load_file

        module = copy.deepcopy(step.skeleton(before, folder, self.open_model).value)
        try:
            module.load_state_dict(load_file(str(folder / WEIGHTS)), strict=True)
        except RuntimeError as error:
            raise PluginError(
                f"The weights that {step.name} left do not fit its skeleton: {first_line(error)}",
                hint="A step that changes a module's structure has to return it anew from `skeleton`.",
            ) from error
        return module.eval()


def _told(step: Step, after: Model, context: Context) -> dict[str, Any]:
    """Return what a step says besides its model, as JSON; PluginError where a report could not hold it."""
    with promise.kept(step.name, "what it tells the report"):
        told = {
            "inputs": [dataclasses.asdict(tensor) for tensor in after.inputs],
            "outputs": [dataclasses.asdict(tensor) for tensor in after.outputs],
            "details": context.details,
            "warnings": context.warnings,
            "exhibits": [to_dict(exhibit) for exhibit in context.exhibits],
        }
    try:
        check_told(told)
    except FieldError as error:
        raise PluginError(f"{step.name} tells what no report can hold: {error.what}.") from error
    return told


def _path(model: Model) -> Path | None:
    return model.value.resolve() if isinstance(model.value, Path) else None


def _tensors(records: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(record["name"], tuple(record["shape"]), record["dtype"]) for record in records)
