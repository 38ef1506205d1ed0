"""The main job as functions: what the command line calls, and what a tool that embeds the host calls."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any

from penjing.data import open_data
from penjing.errors import InputError, PlanError
from penjing.goal import Goal
from penjing.host import Host
from penjing.plan import Plan, choose_task, make_plan, missing_backend
from penjing.preprocess import Preprocess
from penjing.recipe import ending_with, from_toml, override, with_device
from penjing.step import Progress, Silent

if TYPE_CHECKING:
    from penjing.ranks import Ranks
    from penjing.report import Report


#: what those who use a finished run again read in its run.json
_KEPT = {
    "source": str, "weights": str | NoneType, "device": str,
    "backend": dict, "task": str, "seed": int, "classes": list, "preprocess": dict | NoneType,
}  # fmt: skip

#: what the fields of a Request may be, and that in words; Path and str are taken for each other
_ASKED: dict[str, tuple[tuple[type, ...], str]] = {
    "source": ((str,), "text or a path"),
    "device": ((str,), "text or a path"),
    **dict.fromkeys(("data", "weights", "recipe", "out"), ((Path, NoneType), "a path or None")),
    "preprocess": ((Path, Preprocess, NoneType), "a path, a Preprocess or None"),
    "settings": ((tuple,), 'a tuple of texts, "STEP.OPTION=VALUE"'),
    "goal": ((Goal,), "a Goal"),
    "seed": ((int,), "a whole number"),
    "max_broken": ((int, float), "a number"),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for: a model, a device, photographs, and demands. A path may be given as text.

    Raises PlanError naming the field whose value is of another kind.
    """

    source: str
    device: str
    #: a folder of photographs; None to convert without measuring accuracy
    data: Path | None = None
    weights: Path | None = None
    #: a TOML file, or the table itself
    preprocess: Path | Preprocess | None = None
    #: a TOML file of steps in place of the device's recipe, or the name of a built-in one
    recipe: Path | None = None
    #: "STEP.OPTION=VALUE"
    settings: tuple[str, ...] = ()
    goal: Goal = dataclasses.field(default_factory=Goal)
    seed: int = 0
    #: share of broken photographs at which the run stops
    max_broken: float = 0.05
    #: the run folder; None makes one up under runs/
    out: Path | None = None

    def __post_init__(self) -> None:
        for name, (kinds, words) in _ASKED.items():
            value = getattr(self, name)
            if isinstance(value, str) and Path in kinds:
                value = Path(value)
            elif isinstance(value, Path) and str in kinds:
                value = str(value)
            elif isinstance(value, list):
                value = tuple(value)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise PlanError(f"{name} of a Request is {value!r}; it must be {words}.")
            object.__setattr__(self, name, value)
        if not all(isinstance(setting, str) for setting in self.settings):
            raise PlanError(
                f"settings of a Request are {self.settings!r}.", hint='Each is text, "STEP.OPTION=VALUE".'
            )
        if not 0 <= self.seed < 2**32:
            raise PlanError(f"seed of a Request is {self.seed}; it is from 0 to 4294967295.")
        if not 0 <= self.max_broken <= 1:
            raise PlanError(f"max_broken of a Request is {self.max_broken}; it is a share from 0 to 1.")

    @property
    def folder(self) -> Path:
        """Return the run folder."""
        if self.out is not None:
            return self.out
        name = re.sub(r"[^A-Za-z0-9]+", "-", f"{Path(self.source).name}-{self.device}").strip("-").lower()
        return Path("runs") / name

    @property
    def command(self) -> str:
        """Return the command line that asks the same."""
        words = ["penjing", "compress", self.source, "--device", self.device]
        for flag, value in (("data", self.data), ("weights", self.weights), ("recipe", self.recipe)):
            words += [f"--{flag}", str(value)] if value is not None else []
        words += ["--preprocess", str(self.preprocess)] if isinstance(self.preprocess, Path) else []
        words += [word for setting in self.settings for word in ("--set", setting)]
        for name, bound in dataclasses.asdict(self.goal).items():
            words += [f"--{name.replace('_', '-')}", f"{bound:g}"] if bound is not None else []
        words += ["--seed", str(self.seed)] if self.seed else []
        words += ["--max-broken", f"{self.max_broken:g}"] if self.max_broken != 0.05 else []
        words += ["--out", str(self.out)] if self.out is not None else []
        return shlex.join(words)


def plan(request: Request, *, host: Host | None = None, progress: Progress | None = None) -> Plan:
    """Open what is asked for and return the plan; nothing has run. PlanError says what cannot be done."""
    host, progress = host or Host(), progress or Silent()
    _check_folders(request)
    device = host.device(request.device)
    preprocess = request.preprocess
    if isinstance(preprocess, Path):
        preprocess = Preprocess.from_toml(preprocess)
    asked = from_toml(request.recipe) if request.recipe else None
    progress.begin(f"opening {request.source}")
    try:
        model = host.open(request.source, weights=request.weights, preprocess=preprocess)
    except SystemExit as error:  # a script that was meant to be run, not imported
        raise InputError(
            f"{request.source} ends Python when it is opened: sys.exit({error.code!r}).",
            hint='Put what a script does under `if __name__ == "__main__":`.',
        ) from error
    progress.end()
    own = host.recipe(device, model, request.goal)
    whole = with_device(asked, own) if asked else own
    recipe = override(ending_with(whole, request.settings, host.backends), request.settings)
    data = None
    if request.data is not None:
        classes = model.outputs[0].shape[1] if choose_task(host, model).name == "classification" else None
        data = open_data(
            request.data,
            outputs=classes,
            labels=model.labels,
            max_broken=request.max_broken,
            seed=request.seed,
            progress=progress,
        )
        if not model.labels and len(data.classes) == classes:
            model = dataclasses.replace(model, labels=data.classes)
    return make_plan(host, recipe, device, model, data, request.goal)


def _check_folders(request: Request) -> None:
    """Refuse a run folder among the photographs, where it would be taken for one of their classes."""
    if request.data is not None and request.folder.resolve().is_relative_to(request.data.resolve()):
        raise InputError(
            f"The run folder {request.folder} lies in {request.data}, the folder of the photographs.",
            hint="Name one elsewhere with --out.",
        )


def compress(
    request: Request,
    *,
    host: Host | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Report:
    """Carry out the main job, and return the report that also lies in the run folder.

    With `ranks` this is rank 0 of several processes, of which the others call `assist` with the same request.

    Raises PlanError before anything has run, StepError while running; finished steps stay, and the same request
    takes up where it stopped.
    """
    from penjing import bundle
    from penjing import report as reports
    from penjing.compare import compare
    from penjing.run import Run

    host, progress = host or Host(), progress or Silent()
    if request.recipe is None and (refusal := missing_backend(host, host.device(request.device))):
        raise PlanError(
            refusal, hint="`penjing plan` shows what would be done; `penjing plugins` what is installed."
        )
    planned = plan(request, host=host, progress=progress)
    for warning in (*planned.model.warnings, *(planned.data.warnings if planned.data else ())):
        progress.warn(warning)
    run = Run(host, planned, request.folder, seed=request.seed, progress=progress, ranks=ranks)
    with run.opened(_describe(request, planned)):
        columns = run.make()
        report = compare(run, columns, request.command)
        model = columns["optimised"].model
        if not (why := bundle.why_not(model, planned.backend, planned.device)):
            bundle.write(request.folder, model, planned, report)
        else:
            progress.warn(f"No bundle is made: {why}.")
        reports.write(report, request.folder)
    return report


def assist(request: Request, ranks: Ranks, *, host: Host | None = None) -> None:
    """Take part in the training steps of `compress(request, ranks=…)` of rank 0, until its models are made."""
    from penjing.run import Run

    host = host or Host()
    Run(host, plan(request, host=host), request.folder, seed=request.seed, ranks=ranks).assist()


def _describe(request: Request, planned: Plan) -> dict[str, Any]:
    """Return what run.json keeps: what was asked, and what the models in the run need to be run again."""
    model, backend = planned.model, planned.backend
    return {
        "source": request.source,
        "weights": str(request.weights.absolute()) if request.weights else None,
        "cwd": str(Path.cwd()),
        "fingerprint": model.fingerprint,
        "device": request.device,
        "command": request.command,
        "backend": {"name": backend.name, "options": dataclasses.asdict(backend)},  # type: ignore[call-overload]
        "task": planned.task.name,
        "goal": dataclasses.asdict(request.goal),
        "seed": request.seed,
        "preprocess": model.preprocess.to_dict() if model.preprocess else None,
        "classes": list(planned.data.classes if planned.data and planned.data.classes else model.labels),
        "plan": [
            {
                "use": line.use.name,
                "options": dict(line.use.options),
                "why": line.why,
                "left_out": line.left_out,
            }
            for line in planned.lines
        ],
    }


def described(folder: Path) -> dict[str, Any]:
    """Return run.json of a run folder; InputError where it is none."""
    from penjing.files import read_json
    from penjing.run import SCHEMA

    if not (folder / "run.json").is_file():
        raise InputError(
            f"{folder} is not the folder of a run.", hint="`penjing compress` makes one under runs/."
        )
    found = read_json(folder / "run.json")
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(f"{folder / 'run.json'} is of another version of Penjing.", hint="Compress again.")
    _check_types(found, _KEPT, folder / "run.json")
    _check_types(found["backend"], {"name": str, "options": dict}, folder / "run.json")
    return found


def _check_types(table: dict[str, Any], kinds: Mapping[str, type | UnionType], path: Path) -> None:
    for name, kind in kinds.items():
        if not isinstance(table.get(name), kind):
            raise InputError(f"{path} is damaged: its {name!r} cannot be read.", hint="Compress again.")
