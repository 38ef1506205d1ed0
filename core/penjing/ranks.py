"""The processes that carry out one run together, where a launcher such as torchrun started several.

All of them make the same plan. Rank 0 alone writes, prints and measures; the others take part in the steps that train,
and otherwise wait for what rank 0 finished.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

from penjing.errors import PlanError, StepError

#: how long a rank waits for another: one that has failed is noticed by the launcher, which ends all of them
DAYS = 30


@dataclasses.dataclass
class Ranks:
    """Which process this is, out of how many, and how they tell each other."""

    rank: int = 0
    world: int = 1
    #: of those on the same machine; the number of its GPU
    local: int = 0
    #: torch.distributed's key-value store; None for a process on its own
    store: Any = None
    _turns: Iterator[int] = dataclasses.field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Tell whether this process is the one that writes, prints and measures."""
        return self.rank == 0

    def turn(self) -> int:
        """Return a number that is new, and the same in every process, as long as all of them do the same in turn."""
        return next(self._turns)

    def tell(self, value: Any = None) -> Any:
        """Return rank 0's `value`, which is JSON, in every process; all of them have to call it."""
        if self.world == 1:
            return value
        key = f"tell-{self.turn()}"
        if self.first:
            self.store.set(key, json.dumps(value))
            return value
        return json.loads(self.store.get(key))

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, which is JSON, by rank; all of them have to call it."""
        if self.world == 1:
            return [value]
        turn = self.turn()
        self.store.set(f"gather-{turn}-{self.rank}", json.dumps(value))
        return [json.loads(self.store.get(f"gather-{turn}-{rank}")) for rank in range(self.world)]

    def agree(self, value: Any, what: str) -> None:
        """Raise StepError where the processes do not have the same `value`, which is JSON."""
        found = self.gather(value)
        odd = [rank for rank, other in enumerate(found) if other != found[0]]
        if odd:
            raise StepError(
                f"Rank {odd[0]} has another {what} than rank 0.",
                hint="All must run the same command on the same files, with the same versions of all packages.",
            )

    def may_speak(self) -> bool:
        """Tell whether this process is the first that failed: only that one tells the user."""
        return self.world == 1 or int(self.store.add("failed", 1)) == 1


def from_environment() -> Ranks:
    """Return what torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; a process on its own where it says nothing."""
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not found[0] or not found[1] or found[1] == "1":
        return Ranks()
    if not all(text.isdecimal() for text in (*found[:2], found[2] or "0")):
        raise PlanError(
            f"RANK={found[0]!r} and WORLD_SIZE={found[1]!r} are no numbers.",
            hint="Start several processes with torchrun.",
        )
    from datetime import timedelta

    from torch.distributed.rendezvous import rendezvous

    rank, world, local = (int(text or 0) for text in found)
    store, _, _ = next(rendezvous("env://", rank, world))
    store.set_timeout(timedelta(days=DAYS))
    return Ranks(rank, world, local, store)
