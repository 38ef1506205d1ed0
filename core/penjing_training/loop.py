"""The training loop."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from penjing.data import Data
from penjing.errors import StepError, first_line
from penjing.files import digest
from penjing.preprocess import Preprocess
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as images

from penjing_training import checkpoint, parallel
from penjing_training.checkpoint import above, below
from penjing_training.modes import evaluating, other_in_training, train_layers_only
from penjing_training.objective import CrossEntropy, Objective, Whole, are_logits, as_tuple
from penjing_training.optimiser import follow, make_optimiser, rate_at
from penjing_training.photographs import (
    CACHE,
    Augmented,
    Batch,
    Course,
    Normalise,
    Pixels,
    lay_out,
    load,
    mixed,
    seed_of,
)
from penjing_training.record import Clock, Record, check_tensorboard
from penjing_training.score import SOME, Score, norms_of, reestimate, score

#: share of a weight's elements that are zero from which on they are taken for a mask
HELD = 0.25

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.step import Context

    from penjing_training.options import TrainingOptions


def train(
    module: nn.Module,
    options: TrainingOptions,
    model: Model,
    context: Context,
    *,
    objective: Objective | None = None,
    after_step: Callable[[nn.Module], object] | None = None,
    keep_frozen: bool = False,
    name: str = "training",
) -> nn.Module:
    """Return a trained copy of `module` in eval mode: the best seen on *select*, the start being one of those seen.

    `model` says how photographs are prepared; those of `context.data.train` are trained on. `objective` is what is made
    small, by default the cross-entropy with the labels. `after_step` is called with the network after each step, to
    put back what a step must not change. A quarter of a weight or more that is zero is taken for a mask, such as
    prune.sparse24 leaves, and stays zero. Parameters that are frozen in `module` are trained too, unless
    `keep_frozen`; the copy's flags are those of `module` in the end.

    A step that trains several times gives each a `name`. A run that was killed goes on from its last checkpoint in
    `context.scratch`, with the same result to the bit as if it had not been. With several ranks each takes its share of
    every batch, so that the number of steps is that of one process.

    Raises StepError where nothing can be trained, where the network takes one image at a time, or where the loss
    becomes infinite or NaN.
    """
    if options.tensorboard:
        check_tensorboard()
    device = parallel.device_of(context.ranks)
    objective = objective or CrossEntropy(options.label_smoothing)
    # no random number is drawn from a generator of the caller's, and none of ours is left in it
    with torch.random.fork_rng(_cuda(device)), torch.enable_grad(), parallel.together(context.ranks, device):
        job = _Job(module, options, model, context, objective, after_step, keep_frozen, name, device)
        try:
            result = job.run()
        finally:
            objective.end()
    trained = copy.deepcopy(module)
    trained.load_state_dict(result)
    return trained.eval()


def _zeros_of(network: nn.Module) -> dict[str, Tensor]:
    """Return by name where weights are zero that are masked: neither all of them, nor few by chance."""
    zeros = {name: weight == 0 for name, weight in network.named_parameters() if weight.ndim > 1}
    return {name: here for name, here in zeros.items() if HELD <= float(here.float().mean()) < 1}


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


class _Job:
    """One training: what it needs, and how far it is."""

    def __init__(
        self,
        module: nn.Module,
        options: TrainingOptions,
        model: Model,
        context: Context,
        objective: Objective,
        after_step: Callable[[nn.Module], object] | None,
        keep_frozen: bool,
        name: str,
        device: torch.device,
    ) -> None:
        self.options, self.context, self.objective, self.after_step = options, context, objective, after_step
        self.name, self.device, self.ranks = name, device, context.ranks
        data, preprocess, size = _ready(model, context)
        self.network = lay_out(copy.deepcopy(module).to(device))
        for parameter in self.network.parameters():
            if parameter.is_floating_point() and not (keep_frozen and not parameter.requires_grad):
                parameter.requires_grad_(True)
        self.zeros = _zeros_of(self.network)
        self.normalise = Normalise(preprocess, device)
        self.size = size
        self._check(model)
        self._read(data, preprocess)
        self.course = Course(len(self.photos), options, context.seed, self.ranks.rank, self.ranks.world)
        if self.course.batch < 2 * self.ranks.world:
            where = f" for {self.ranks.world} processes" if self.ranks.world > 1 else ""
            raise StepError(
                f"A batch of {self.course.batch} photographs is too small{where}.",
                hint="Each process needs two at least: raise batch_size, add photographs, or start fewer processes.",
            )
        self._begin(model, module)
        self.step, self.waited = 0, 0
        self.best: tuple[Score | None, checkpoint.Tensors] = (None, {})
        #: the step in which the best was seen
        self.found = 0
        self.record = Record(self.course.steps)

    def _check(self, model: Model) -> None:
        """Refuse what cannot be trained."""
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            raise StepError("The network has no parameters to train.", hint="Leave this step out.")
        try:
            self._example()
        except RuntimeError as error:
            raise StepError(
                f"The network does not take two images at a time: {first_line(error)}",
                hint="An exported program has a fixed batch: open the network from its Python source.",
            ) from error

    @torch.no_grad()
    def _example(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return inputs of zeros and what the network puts out for them."""
        channels = len(self.normalise.preprocess.channels)
        inputs = torch.zeros(2, channels, *self.size, device=self.device)
        with evaluating(self.network):
            return inputs, as_tuple(self.network(inputs))

    def _read(self, data: Data, preprocess: Preprocess) -> None:
        whole = dataclasses.replace(preprocess, crop=None)
        bound = CACHE // self.ranks.world
        self.photos = Pixels(data.train, whole.pixels, self.context.progress, bound)
        self.select = Pixels(data.select, preprocess.pixels, self.context.progress, bound // 4)
        if not len(self.photos):
            raise StepError(f"No photograph to train on is left in {data.root}.", hint="Add photographs.")
        self.augmented = Augmented(
            self.photos, self.size, self.options, preprocess.interpolation, self.context.seed
        )

    def _begin(self, model: Model, module: nn.Module) -> None:
        inputs, outputs = self._example()
        self.classes = outputs[0].shape[1] if are_logits(outputs[0]) else 0
        self.other = other_in_training(self.network, inputs)
        torch.manual_seed(seed_of(self.context.seed, "adapters"))
        with evaluating(self.network):
            extra = self.objective.begin(self.network, model, inputs)
        self.whole = Whole(self.network, extra, self.objective).to(self.device)
        self.average = copy.deepcopy(self.network).eval() if self.options.ema else None
        self.optimiser = make_optimiser(self.whole.parameters(), self.options)
        self.wrapped = parallel.wrap(self.whole, self.ranks, self.device, inputs, self._targets())
        kind = self._dtype()
        self.scaler = torch.amp.GradScaler("cuda", enabled=kind == torch.float16)
        self.cast = {"device_type": self.device.type, "dtype": kind, "enabled": kind is not None}
        settings = dataclasses.asdict(self.options)
        job = (
            checkpoint.VERSION,
            repr(settings),
            type(self.objective).__name__,
            str(self.ranks.world),
            str(self.context.seed),
        )
        self.job = digest(*job, checkpoint.digest_of(module.state_dict()))

    def _targets(self) -> Tensor | None:
        """Return labels for the example, where there are labels."""
        known = min(self.photos.labels) >= 0
        return torch.zeros(2, dtype=torch.int64, device=self.device) if known else None

    def _dtype(self) -> torch.dtype | None:
        if self.device.type != "cuda" or not self.options.amp:
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16

    @property
    def candidate(self) -> nn.Module:
        """Return the network that would be the result."""
        return self.network if self.average is None else self.average

    def run(self) -> checkpoint.Tensors:
        """Train from where it stands to the end; return the state of the best network."""
        if (finished := self._resume()) is not None:
            return finished
        clock = Clock(self.course.steps, self.step)
        self.context.progress.begin(self.name)
        if not self.record.select:
            self._judge()
        parts = load(self.augmented, self.course, self.step, self.options.workers)
        while self.step < self.course.steps and not self._tired():
            epoch = self.step // self.course.per_epoch + 1
            self.context.progress.begin(f"epoch {epoch} of {self.options.epochs}", self.course.per_epoch)
            if done := self.step % self.course.per_epoch:
                self.context.progress.advance(done)
            said = self._epoch(parts, clock)
            self.context.progress.end(f"{said}, {clock.left()}")
        result = self._finish()
        self.context.progress.end(str(self.best[0] or f"{self.step} steps"))
        return result

    def _epoch(self, parts: Iterator[tuple[Tensor, Tensor]], clock: Clock) -> str:
        """Train to the end of an epoch, and return in words how good it is."""
        every = self.options.checkpoint_every
        loss = 0.0
        while True:
            loss = self._step(parts)
            self.step += 1
            self.record.step(self.step, loss)
            ends = self.step % self.course.per_epoch == 0
            if ends:
                found = self._judge()
            if every and self.step % every == 0:
                self._save()
            clock.tick()
            self.context.progress.advance()
            if ends:
                return str(found or f"loss {loss:.4g}")

    def _step(self, parts: Iterator[tuple[Tensor, Tensor]]) -> float:
        """Follow the gradient of one batch, and return its loss on this process."""
        self.whole.train()
        if self.other:
            train_layers_only(self.network)
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.step, self.course.steps, self.options)
        count = len(list(self.course.parts(self.step)))
        total = 0.0
        for part in range(count):
            batch, share = self._batch(parts, part)
            with (
                self._told(),
                parallel.unsynchronised(self.wrapped, part < count - 1),
                torch.autocast(**self.cast),  # type: ignore[arg-type]  # a dict of them
            ):
                loss = self.wrapped(batch.inputs, batch.targets) * share
                self.scaler.scale(loss).backward()
            total += float(loss.detach())
        # DistributedDataParallel takes the mean over processes, each of which weighs by its share of the batch
        self._check_loss(total)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        with torch.no_grad():
            for name, zeros in self.zeros.items():
                self.network.get_parameter(name).masked_fill_(zeros, 0)
            if self.after_step is not None:
                self.after_step(self.network)
        if self.average is not None:
            follow(self.average, self.network, self.options.ema, self.step)
        return total

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell what a network's own code raises while it is trained."""
        try:
            yield
        except RuntimeError as error:
            raise StepError(
                f"The network fails in step {self.step + 1} of {self.name}: {first_line(error)}",
                hint="In training its code runs on batches, and gradients go back through it. accumulate makes parts "
                "of a batch smaller: lower it where a part is too small, raise it where memory is short.",
            ) from error

    def _batch(self, parts: Iterator[tuple[Tensor, Tensor]], part: int) -> tuple[Batch, float]:
        """Return the next part of a batch, and the weight of its mean: its share, times the processes."""
        pixels, labels = next(parts)
        # what dropout and mixup draw depends on the step alone
        torch.manual_seed(seed_of(self.context.seed, "step", self.step, self.ranks.rank, part))
        share = len(pixels) / self.course.batch * self.ranks.world
        targets = None if int(labels.min()) < 0 else labels.to(self.device)
        batch = Batch(self.normalise(pixels), targets)
        if self.options.mixup and (targets is None or self.classes):
            batch = mixed(batch, self.options.mixup, self.classes)
        return batch, share

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise StepError(
                f"The loss became {loss} in step {self.step + 1} of {self.course.steps}.",
                hint=f"Lower learning_rate, which is {self.options.learning_rate:g}, or raise batch_size.",
            )

    def _judge(self) -> Score | None:
        """Score the network on select, and remember it if it is the best seen.

        After few steps the running statistics of batch norms are still those of another network: they are
        estimated anew before it is judged by them. The network it began with is judged as it is.
        """
        self.waited += 1
        with evaluating(self.candidate) as network:
            if self.step and self._reestimates:
                reestimate(network, self.photos, self._clean, self.normalise, SOME)
            parallel.spread_buffers(network, self.ranks)
            found = self._consider(network, self.step)
        if found is not None:
            self.record.score(self.step, found)
        return found

    @property
    def _reestimates(self) -> bool:
        return self.options.batch_norm and bool(norms_of(self.network))

    def _consider(self, network: nn.Module, step: int) -> Score | None:
        """Score a network in eval mode, and keep its state if it is the best seen; None, and kept, without select."""
        if not len(self.select):
            self.best, self.found, self.waited = (None, checkpoint.state_of(network)), step, 0
            return None
        found = score(network, self.objective, self.select, self.normalise)
        found = Score(*self.ranks.tell([found.loss, found.accuracy]))  # all decide alike
        if found.beats(self.best[0]):
            self.best, self.found, self.waited = (found, checkpoint.state_of(network)), step, 0
        return found

    def _tired(self) -> bool:
        return bool(self.options.patience) and self.waited >= self.options.patience

    def _finish(self) -> checkpoint.Tensors:
        """Return the state of the best network, its batch norms maybe estimated anew, and tell the report.

        While training they are estimated from some photographs, so that the last network may be the best only
        once all have their say: it is looked at too.
        """
        if self.step and self._reestimates:
            ends = {self.found: self.best[1]}
            ends[self.step] = checkpoint.state_of(self.candidate)  # often the same step
            for step, state in ends.items():
                self.network.load_state_dict(state)
                self.network.eval()
                reestimate(self.network, self.photos, self._clean, self.normalise)
                parallel.spread_buffers(self.network, self.ranks)
                self._consider(self.network, step)
        state = self.best[1]
        if self.step and not all(bool(t.isfinite().all()) for t in state.values() if t.is_floating_point()):
            raise StepError(
                f"Training ended with weights that are infinite or NaN, after {self.step} steps.",
                hint="Lower learning_rate; weights in half precision have to be float32 for training.",
            )
        self.ranks.agree(checkpoint.digest_of(state), "result of training")
        self._tell()
        self._save(finished=True)
        return {name: tensor.cpu() for name, tensor in state.items()}

    def _clean(self, pixels: Tensor) -> Tensor:
        cropped: Tensor = images.center_crop(pixels, list(self.size))
        return cropped

    def _tell(self) -> None:
        best = self.best[0]
        if best is not None and self.step and not self.found:
            self.context.warn(
                f"{self.name}: nothing scored better on select than the network it began with, which is kept."
            )
        self.context.details[self.name] = {
            "steps": self.step,
            "of": self.course.steps,
            "best": self.found,
            "photographs": len(self.photos),
            "processes": self.ranks.world,
            "select": None
            if best is None
            else {"loss": best.loss, "right": best.accuracy, "n": len(self.select)},
        }
        if self.other:
            self.context.details[self.name]["mode"] = f"layers only: in training {self.other}"
        self.record.show(self.context, self.name)
        if self.options.tensorboard:
            self.record.tensorboard(self.context.folder / "tensorboard" / self.name)

    def _save(self, finished: bool = False) -> None:
        """Write down all that going on needs; random numbers depend on the step alone, and need nothing."""
        if self.context.scratch is None or not self.options.checkpoint_every or not self.ranks.first:
            return
        score_, best = self.best
        tensors = above("best", best)
        if not finished:
            tensors |= above("whole", self.whole.state_dict())
            tensors |= above("optimiser", checkpoint.optimiser_tensors(self.optimiser))
            tensors |= above("average", self.average.state_dict() if self.average is not None else {})
        state: dict[str, Any] = {
            "job": self.job,
            "finished": finished,
            "step": self.step,
            "waited": self.waited,
            "found": self.found,
            "score": None if score_ is None else [score_.loss, score_.accuracy],
            "record": self.record.to_dict(),
            "scaler": self.scaler.state_dict(),
        }
        checkpoint.write(self.context.scratch / f"{self.name}.safetensors", tensors, state)

    def _resume(self) -> checkpoint.Tensors | None:
        """Take up a checkpoint, if there is one; return the result if it is there already."""
        if self.context.scratch is None:
            return None
        found = checkpoint.read(self.context.scratch / f"{self.name}.safetensors", self.job)
        self.ranks.agree(None if found is None else found[1]["step"], "checkpoint")
        if found is None:
            return None
        tensors, state = found
        self.step, self.waited, self.found = state["step"], state["waited"], state["found"]
        best = state["score"] and Score(*state["score"])
        self.best = (best, {n: t.to(self.device) for n, t in below("best", tensors).items()})
        self.record = Record.from_dict(state["record"])
        if state["finished"]:
            self._tell()
            return {name: tensor.cpu() for name, tensor in self.best[1].items()}
        self.whole.load_state_dict(below("whole", tensors))
        checkpoint.load_optimiser(self.optimiser, below("optimiser", tensors))
        if self.average is not None:
            self.average.load_state_dict(below("average", tensors))
        self.scaler.load_state_dict(state["scaler"])
        return None


def _ready(model: Model, context: Context) -> tuple[Data, Preprocess, tuple[int, int]]:
    """Return the photographs, how they are prepared, and the size that makes."""
    if context.data is None:
        raise StepError("Training needs photographs.", hint="Give --data FOLDER.")
    if model.preprocess is None or model.preprocess.size is None:
        raise StepError(
            "Training needs to know how a photograph becomes the network's input.",
            hint="Give --preprocess FILE.toml, with a crop or resize = [height, width].",
        )
    return context.data, model.preprocess, model.preprocess.size
