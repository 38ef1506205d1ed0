"""One execution of a plan: a folder that can be killed at any moment and taken up again.

RUN/
    run.json                    what was asked, and the plan
    steps/NAME-KEY/             files of a finished step, and step.json
    checkpoints/NAME-KEY/       where a step that trains is taken up again; gone when it is finished
    measurements/KIND-KEY.json  answers and times, by the content of what was measured
    original/ direct/ optimised/model.onnx  and steps.json, the steps that made it
    report.html  report.md  report.json
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import promise, sealed
from penjing.environment import packages
from penjing.errors import InputError, PenjingError, PluginError, StepError, first_line
from penjing.files import digest, sha256_of, write_bytes, write_text
from penjing.plan import Plan
from penjing.ranks import Ranks
from penjing.step import Context, Progress, Silent, Source, Step
from penjing.store import Done, Store

if TYPE_CHECKING:
    from penjing.host import Host
    from penjing.model import Model

SCHEMA = 1
#: files that `write_bytes` had not finished when the process was killed
LEFTOVERS = (
    *(".run.json.*", ".report.*", "measurements/.*", "*/.model.onnx.*", "*/.steps.json.*"),
    "checkpoints/*/.*",
)
#: the steps that made a column, beside its model
STEPS = "steps.json"


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the report as it was made: its steps, its model, or why it could not be made."""

    name: str
    steps: tuple[Step, ...]
    done: tuple[Done, ...]
    failed: str = ""

    @property
    def model(self) -> Model:
        """Return the model at the end."""
        return self.done[-1].model


class Run:
    """Executes a plan in a folder."""

    def __init__(
        self,
        host: Host,
        plan: Plan,
        folder: Path,
        *,
        seed: int = 0,
        progress: Progress | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.host, self.plan, self.folder, self.seed = host, plan, folder, seed
        self.progress: Progress = progress or Silent()
        self.ranks = ranks or Ranks()
        self.store: Store
        self._open_once = functools.cache(functools.partial(open_source, host, plan.model))

    @contextmanager
    def opened(self, description: Mapping[str, Any]) -> Iterator[None]:
        """Take the folder for this process, and write down what was asked.

        Raises InputError where the folder holds something else, where it cannot be written, and where another
        process is at work in it.
        """
        with locked(self.folder):
            for pattern in LEFTOVERS:
                for leftover in self.folder.glob(pattern):
                    leftover.unlink()
            self.store = Store(self.folder, self._open_once)
            # ASCII, because a path that is no text (a lone surrogate) has no other way into JSON
            write_text(
                self.folder / "run.json", json.dumps({"schema": SCHEMA, **description}, indent=1) + "\n"
            )
            yield

    def assist(self) -> None:
        """Take part in the training of rank 0, which holds the folder, and wait for what else it does."""
        self.store = Store(self.folder, self._open_once, reading=True)
        self.make()

    def make(self) -> dict[str, Column]:
        """Carry out the steps of every column; what is finished already is reused.

        Raises StepError where the original or the optimised model cannot be made. That the naive form fails is
        a result, not an error.
        """
        for source in {source for step in self.plan.optimised for source in _sources(step)}:
            self._open_once(source)  # what cannot be opened is told before anything runs
        columns = {}
        for name, steps in self.plan.columns.items():
            self.progress.begin(f"{name} model")
            try:
                columns[name] = Column(name, steps, tuple(self._carry_out(steps)))
            except StepError as error:
                if name != "direct":
                    raise
                columns[name] = Column(name, steps, (), error.message)
                self.progress.end(error.message)
                continue
            if self.ranks.first:
                self._publish(columns[name])
            self.progress.end()
        if self.ranks.first:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return columns

    def _carry_out(self, steps: tuple[Step, ...]) -> Iterator[Done]:
        model = self.plan.model
        for step in steps:
            done = self._one(step, model)
            model = done.model
            yield done

    def _one(self, step: Step, model: Model) -> Done:
        options = dataclasses.asdict(step)  # type: ignore[call-overload]  # every Step is a dataclass: Host.steps
        key = self._key(step, options, model)
        self.ranks.agree(key, f"key of {step.name}")
        self.progress.begin(step.name)
        if (found := self._find(step, key, model)) is not None:
            self.remember_broken(found.record["broken"])
            self.progress.end("already done")
            return found
        start = time.monotonic()
        try:
            done = self._do(step, options, key, model, start)
        except BaseException:
            self.progress.end("failed")
            raise
        self.progress.end(f"{time.monotonic() - start:.1f} s")
        return done

    def _find(self, step: Step, key: str, model: Model) -> Done | None:
        """Return the finished step; rank 0 decides whether there is one, since it alone changes the folder."""
        found = self.store.find(step, key, model) if self.ranks.first else None
        if self.ranks.tell(found is not None) and not self.ranks.first:
            found = self._found(step, key, model)
        return found

    def _found(self, step: Step, key: str, model: Model) -> Done:
        found = self.store.find(step, key, model)
        if found is None:
            raise StepError(
                f"Rank {self.ranks.rank} does not find in {self.folder} what rank 0 finished.",
                hint="All machines need the run folder, on a file system that they share.",
            )
        return found

    def _do(self, step: Step, options: dict[str, Any], key: str, model: Model, start: float) -> Done:
        """Carry out a step and keep its result: rank 0 does, and the others take part only where it trains."""
        trains, failure = "training" in step.needs, None
        if self.ranks.first:
            try:
                done = self._work(step, options, key, model, start)
            except StepError as error:
                failure = [error.message, error.hint]
                if trains:  # the others fail by themselves, or are waiting for this one to end
                    raise
        elif trains:
            with tempfile.TemporaryDirectory() as folder:
                self._apply(step, model, self._context(step, key, Path(folder)))
        failure = self.ranks.tell(failure)
        if failure:
            raise StepError(failure[0], hint=failure[1])
        return done if self.ranks.first else self._found(step, key, model)

    def _work(self, step: Step, options: dict[str, Any], key: str, model: Model, start: float) -> Done:
        data = self.plan.data
        with self.store.room() as folder:
            context = self._context(step, key, folder)
            after = self._apply(step, model, context)
            facts = {
                "options": options,
                "key": key,
                "seconds": round(time.monotonic() - start, 3),
                "broken": [] if data is None else list(data.broken),
            }
            done = self.store.keep(step, key, model, after, context, facts)
        if context.scratch is not None:
            shutil.rmtree(context.scratch, ignore_errors=True)
        return done

    def _context(self, step: Step, key: str, folder: Path) -> Context:
        return Context(
            self.plan.device,
            self.plan.goal,
            self.plan.data,
            folder,
            self.plan.backend,
            self.seed,
            self.progress,
            task=self.plan.task,
            original=self.plan.model,
            open=self._open_once,
            scratch=self.folder / "checkpoints" / f"{step.name}-{key[:16]}",
            ranks=self.ranks,
        )

    def _apply(self, step: Step, model: Model, context: Context) -> Model:
        given = _content(model)
        try:
            after = self.host.apply(step, model, context)
        except PenjingError as error:
            if isinstance(error, StepError | InputError):
                raise StepError(f"{step.name}: {error.message}", hint=error.hint) from error
            raise
        except OSError:
            raise  # said in one place, by `locked`
        except (Exception, SystemExit) as error:
            raise StepError(
                f"{step.name} failed: {type(error).__name__}: {first_line(error)}",
                hint="What came before is kept. --debug shows where it happened.",
            ) from error
        if _content(model) != given:
            raise PluginError(
                f"{step.name} changed the model that it was given, {model.value}.",
                hint="It must write only into context.folder. Put the file back before you run again.",
            )
        return after

    def _key(self, step: Step, options: Mapping[str, Any], model: Model) -> str:
        trains = "training" in step.needs
        facts = {
            "step": step.name,
            "options": options,
            "original": self.plan.model.fingerprint if trains else None,
            "sources": [self._open_once(source).fingerprint for source in _sources(step)],
            "input": model.fingerprint,
            "labels": model.labels,
            "preprocess": model.preprocess.to_dict() if model.preprocess else None,
            "data": self.plan.data.fingerprint if self.plan.data and step.needs else None,
            "goal": dataclasses.asdict(self.plan.goal) if step.heeds_goal else None,
            "resources": self._resources(step),
            "seed": self.seed,
            "plugin": self.host.origin(step.name),
            "packages": packages(),
        }
        return digest(json.dumps(facts, sort_keys=True, default=str))

    def _resources(self, step: Step) -> Any:
        with promise.kept(step.name, "resources"):
            resources = step.resources(self.plan.device, self.plan.backend)
            return json.loads(json.dumps(resources, sort_keys=True, default=str, allow_nan=False))

    def remember_broken(self, broken: Iterable[tuple[str, str]]) -> None:
        """Note the photographs that were found broken by work that is reused, as it did when it was done."""
        data = self.plan.data
        for name, reason in broken if data else ():
            if data is not None and data.root / name not in data.broken:
                data.broken.add(data.root / name, reason)

    def _publish(self, column: Column) -> None:
        """Put the interchange model of a column where people look for it, and which steps made it."""
        model = column.model
        (self.folder / column.name).mkdir(exist_ok=True)
        steps = [
            {**{name: done.record[name] for name in ("name", "options", "key")}, "form": done.model.form}
            for done in column.done
            if done.record["value"] != "unchanged"
        ]
        sealed.write(self.folder / column.name / STEPS, {"steps": steps})
        if not (isinstance(model.value, Path) and model.value.suffix == ".onnx"):
            return
        target = self.folder / column.name / "model.onnx"
        if not target.exists() or sha256_of(target) != sha256_of(model.value):
            write_bytes(target, model.value.read_bytes())


def _content(model: Model) -> str:
    """Return the hash of the file that a model is; "" where it is none."""
    path = model.value
    return sha256_of(path) if isinstance(path, Path) and path.is_file() else ""


def _sources(step: Step) -> tuple[Source, ...]:
    with promise.kept(step.name, "sources"):
        sources = step.sources()
    if not isinstance(sources, tuple) or not all(isinstance(source, Source) for source in sources):
        raise PluginError(f"{step.name}.sources() returned no tuple of Source, but {sources!r}.")
    return sources


def open_source(host: Host, original: Model, source: Source) -> Model:
    """Open a model that a step asks for; what does not say how it takes images takes them as the original does."""
    if source.alike:
        return host.open(source.name, weights=source.weights, preprocess=original.preprocess)
    try:
        return host.open(source.name, weights=source.weights)
    except InputError:  # most probably for that reason; if not, it is raised again
        return host.open(source.name, weights=source.weights, preprocess=original.preprocess)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder `folder`, made where it is missing; what the system refuses becomes a clear error.

    InputError where the folder cannot be had, StepError where something in it fails later.
    """
    with _lock(folder), _explained(folder):
        yield


def _lock(folder: Path) -> AbstractContextManager[object]:
    from filelock import FileLock, Timeout

    try:
        if folder.exists() and not (folder / "run.json").exists() and _holds_other_things(folder):
            raise InputError(
                f"{folder} is not empty, and not the folder of a run.", hint="Name another with --out."
            )
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"Another process is at work in {folder}.", hint="Wait for it, or name another --out."
        ) from error
    except OSError as error:
        raise InputError(
            f"{folder} cannot be the folder of a run: {error.strerror or error}.",
            hint="It must be a folder that you may write to.",
        ) from error


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise StepError(
            f"The run in {folder} stopped: {error.strerror or error}{where}.",
            hint=_advice(folder) + " Finished steps are kept: run the same command again.",
        ) from error


def _holds_other_things(folder: Path) -> bool:
    """Tell whether there is more than a run killed in its first moments leaves behind."""
    return any(
        path.name not in (".lock", "steps") and not path.name.startswith(".run.json")
        for path in folder.iterdir()
    )


def _advice(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e6
    return f"{free:.0f} MB are free there; the folder must be writable."
