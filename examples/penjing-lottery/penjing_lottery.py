"""Zero weights drawn at random: what any pruning has to beat."""

import copy
from dataclasses import dataclass

from penjing import Context, Model, Technique, hookimpl, option


@dataclass(frozen=True)
class Lottery(Technique):
    """Zero weights drawn at random."""

    name = "prune.lottery"
    accepts = frozenset({"torch"})
    produces = "torch"
    sparsity: float = option(0.5, "Share of the weights to zero.", between=(0, 1))

    def apply(self, model: Model, context: Context) -> Model:
        import torch  # here, so that `penjing --help` does not wait for it

        module = copy.deepcopy(model.value)
        generator = torch.Generator().manual_seed(context.seed)
        with torch.no_grad():
            for weight in (w for w in module.parameters() if w.ndim > 1):
                weight *= torch.rand(weight.shape, generator=generator) >= self.sparsity
        return model.become("torch", module)


@hookimpl
def penjing_techniques() -> list[type[Technique]]:
    return [Lottery]
