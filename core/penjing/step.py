"""Steps: what techniques and backends are, and what they may know while they run.

A step is a frozen dataclass whose fields are its options:

    @dataclass(frozen=True)
    class Lottery(Technique):
        '''Zero weights drawn at random.'''
        name = "prune.lottery"
        accepts = frozenset({"torch"})
        produces = "torch"
        sparsity: float = option(0.5, "Share of weights to zero.", between=(0, 1))

        def apply(self, model, context): ...
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from penjing.errors import StepError
from penjing.goal import Goal

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

    from penjing.data import Data
    from penjing.device import Device
    from penjing.exhibit import Exhibit
    from penjing.model import Model
    from penjing.ranks import Ranks
    from penjing.task import Task


class Progress(Protocol):
    """Hears how far the work is. The host prints nothing itself."""

    def begin(self, what: str, total: int | None = None) -> None:
        """Start a piece of work of `total` units, where that is known."""

    def advance(self, count: int = 1) -> None:
        """Finish `count` units of the piece of work begun last."""

    def end(self, result: str = "") -> None:
        """Finish the piece of work begun last, with its result in a few words."""

    def warn(self, message: str) -> None:
        """Tell the user something that needs their eye."""


class Silent:
    """Progress that nobody watches."""

    def begin(self, what: str, total: int | None = None) -> None: ...
    def advance(self, count: int = 1) -> None: ...
    def end(self, result: str = "") -> None: ...
    def warn(self, message: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that a step opens besides the one it is given, such as a teacher."""

    name: str
    #: a file of weights to load into it
    weights: Path | None = None
    #: True where it takes images prepared as the original's are, whatever it would say itself
    alike: bool = False


class Open(Protocol):
    """Opens a model by its source; twice the same source is opened once."""

    def __call__(self, source: Source) -> Model:
        """Return the model, which nobody may change; InputError where it cannot be opened."""


def opens_nothing(source: Source) -> Model:
    """Refuse to open anything: the answer of a context that nobody gave a way to."""
    raise StepError(f"{source.name} cannot be opened: this context has no way to open a model.")


@dataclasses.dataclass
class Context:
    """What a step may know and use while it runs."""

    device: Device
    goal: Goal
    #: the photographs, in disjoint splits; None for a run without data
    data: Data | None
    #: an empty folder of the step's own: every file it makes goes here
    folder: Path
    #: the backend at the end of the plan, which says what graphs it wants
    backend: Backend
    seed: int = 0
    progress: Progress = dataclasses.field(default_factory=Silent)
    #: what the user must be told; kept with the step's result
    warnings: list[str] = dataclasses.field(default_factory=list)
    #: what the report tells of this step: JSON values by name
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    #: pictures and tables that the report shows of this step
    exhibits: list[Exhibit] = dataclasses.field(default_factory=list)
    #: the model as it was opened, before any step; only a step that trains may use it, as a teacher
    original: Model | None = None
    #: opens those models that the step's `sources` names
    open: Open = opens_nothing
    #: where a long job keeps what it needs to be taken up again after kill -9, to be made where it is missing, and
    #: removed when the step is finished; None where nothing survives
    scratch: Path | None = None
    #: which of the processes that train together this is
    ranks: Ranks = dataclasses.field(default_factory=lambda: _alone())
    #: how outputs are scored; None where nobody said
    task: Task | None = None

    def show(self, exhibit: Exhibit) -> None:
        """Put a picture or a table into the report."""
        self.exhibits.append(exhibit)

    def warn(self, message: str) -> None:
        """Tell the user, now and in the report."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.progress.warn(message)


def _alone() -> Ranks:
    from penjing.ranks import Ranks

    return Ranks()


class Step(ABC):
    """One thing done to a model. Subclasses are frozen dataclasses; their fields are their options."""

    name: ClassVar[str]
    #: forms of model it takes, and the one it returns
    accepts: ClassVar[frozenset[str]]
    produces: ClassVar[str]
    #: what it must be given: of "calibration" (photographs), "training" (photographs to train on), "labels"
    needs: ClassVar[frozenset[str]] = frozenset()
    #: True where it changes the form only, so that the original model takes it too
    exact: ClassVar[bool] = False
    #: True where the result depends on the user's goal, which is then part of the cache key
    heeds_goal: ClassVar[bool] = False

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError where this step, with its options, cannot serve that device. Nothing has run yet."""
        return

    def check_source(self, model: Model) -> None:
        """Raise PlanError where this step cannot serve the model that was opened, whatever its steps before do."""
        return

    def explain(self, device: Device, backend: Backend) -> str:
        """Return in a sentence what this step does for that device: the plan shows it."""
        return (type(self).__doc__ or "").strip().split("\n", 1)[0]

    def stays(self, model: Model) -> tuple[tuple[str, str], ...]:
        """Return parts of the model as it was opened that this step would leave as they are, each with the reason.

        It is asked only where a plan is shown, and may take seconds; PlanError says why it cannot be told.
        """
        return ()

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the facts of device and backend that the result depends on: part of the cache key."""
        return {}

    def sources(self) -> tuple[Source, ...]:
        """Return the models that `apply` opens through `context.open`: their weights are part of the cache key."""
        return ()

    @abstractmethod
    def apply(self, model: Model, context: Context) -> Model:
        """Return the next model; never change the one given, and write only into `context.folder`."""

    def skeleton(self, model: Model, folder: Path, open_model: Open) -> Model:
        """Return a model whose module has the structure of what `apply(model, …)` returned.

        The host keeps the weights, and loads them into a copy of that. A step that changes the structure overrides
        this: what else it needs, `apply` leaves in its `folder`, as data and no pickle.
        """
        return model

    def naive(self) -> Self | None:
        """Return this step in its naive form, for the report's *direct* column; None to leave it out."""
        return self


class Technique(Step):
    """A step that makes a model smaller or faster, or wins accuracy back."""


class Session(Protocol):
    """A model loaded and ready to run."""

    def __call__(self, batch: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Run one batch (NCHW) and return every output in order."""


class Backend(Step):
    """A step that ends a plan: it readies a model for a runtime, and can run and time it where the runtime is here."""

    #: threads of one inference, as the report states them
    threads: int = 1

    @abstractmethod
    def available(self, device: Device) -> str:
        """Return why this backend cannot run models on this machine as it would on `device`; "" where it can."""

    @abstractmethod
    def open(self, model: Model, device: Device) -> Session:
        """Load a model of a form in `accepts` to run it here, answering as it would on `device`."""

    def scheme(self, device: Device) -> Scheme | None:
        """Return what this backend wants of a quantised graph on `device`; None where it runs none."""
        return None

    def operators(self, device: Device) -> frozenset[str] | None:
        """Return the standard operators that the runtime of `device` reads; None for all of the device's opset."""
        return None

    def deployment(self, model: Model, device: Device) -> Deployment | None:
        """Return how the runner of a bundle runs `model`, as `apply` returned it; None where it cannot."""
        return None


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """A kind of layer that stays float, although the backend has an integer kernel for its operator.

    `when` and `unless` are alternatives, each of comparisons that must all hold: `"in_channels < 16, groups == 1"`.
    A layer is of this kind where one of `when` holds and none of `unless`. Compared are, by name:
    `in_channels` (of one group), `out_channels`, `groups`, `kernel_least`, `kernel_most`, `square` (0 or 1), `first`
    (0 or 1: nothing weighted comes before), `rows`, `depth` and `columns` (of the matrix product [rows, depth] x
    [depth, columns] that the layer is), `reads` (the operator that it reads, transposing and the like passed over).
    `"out_channels % 8 == 0"` compares a remainder. A number that an open dimension leaves unknown makes a
    comparison false.
    """

    operators: tuple[str, ...]
    when: tuple[str, ...]
    why: str
    #: where this is documented or was measured
    source: str
    unless: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Deployment:
    """How the runner of a bundle runs a backend's model on the device: data that goes into the manifest."""

    #: what runs it there, of the runner's RUNTIMES: "onnxruntime" or "tensorrt"
    runtime: str
    #: how an engine is built on the device: JSON that docs/bundle.md describes under `runtime.build`
    build: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: further files that the build reads, by the name they get in the bundle; `build` speaks of them by it
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    #: the file that goes into the bundle as its model, where it is not the one that was measured
    model: Path | None = None


@dataclasses.dataclass(frozen=True)
class Scheme:
    """What a backend wants of a graph with QuantizeLinear and DequantizeLinear: data that the quantiser obeys."""

    #: numpy dtype names
    activation: str
    weight: str
    #: zero points of activations are all 0
    symmetric: bool
    #: one scale for each output channel of a weight, where the kernel takes it
    per_channel: bool
    #: weights use 7 bits, so that sums of two products cannot leave int16
    reduce_range: bool
    #: "int32": bias through DequantizeLinear; "float32": bias left as it is
    bias: str
    #: "all": every tensor between two operators it can run on integers; "inputs": only inputs of weighted operators;
    #: "every": whatever such an operator reads or puts out, though nothing between a convolution and its activation
    placement: str
    #: operators that it can run on integers
    operators: frozenset[str]
    #: where this is documented or was measured
    source: str
    #: layers that stay float although their operator is one of these
    exclusions: tuple[Exclusion, ...] = ()
    #: the runtime computes in the types that the graph says, and in no other (TensorRT 11; strong typing)
    typed: bool = False
