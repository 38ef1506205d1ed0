"""A run killed while it trains goes on where it was, with the same result to the bit."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from penjing_training import TrainingOptions, checkpoint
from penjing_training.loop import train
from safetensors import safe_open
from torch import nn

OPTIONS = TrainingOptions(epochs=4, batch_size=8, learning_rate=1e-2, mixup=0.2, ema=0.9, checkpoint_every=2)


class KilledError(Exception):
    """Stands for kill -9 within one process."""


def cut_off(kit, make_context, options, at: int, scratch: Path, module: nn.Module) -> list[int]:
    """Train, ending it after step `at`; return the steps that were done."""
    done: list[int] = []

    def count(network):
        done.append(1)
        if len(done) == at:
            raise KilledError

    try:
        context = make_context(scratch=scratch)
        result = train(module, options, kit.as_model(module), context, after_step=count)
    except KilledError:
        return done
    cut_off.result, cut_off.context = result, context
    return done


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_cut_off_again_and_again_it_ends_as_if_it_had_not_been(kit, make_context, tmp_path, optimiser):
    import dataclasses

    module, options = kit.network(), dataclasses.replace(OPTIONS, optimiser=optimiser)
    undisturbed = make_context()
    whole = train(module, options, kit.as_model(module), undisturbed)
    total = undisturbed.details["training"]["steps"]
    pieces = 0
    while len(done := cut_off(kit, make_context, options, 5, tmp_path / "scratch", module)) == 5:
        pieces += 1
        assert pieces < total

    assert pieces > 2
    assert len(done) < 5
    for name, tensor in cut_off.result.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
    assert cut_off.context.details == undisturbed.details
    assert cut_off.context.exhibits == undisturbed.exhibits


def test_what_is_finished_is_not_trained_again(kit, make_context, tmp_path):
    module = kit.network()
    cut_off(kit, make_context, OPTIONS, 10_000, tmp_path, module)
    first = cut_off.result
    assert cut_off(kit, make_context, OPTIONS, 10_000, tmp_path, module) == []
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), cut_off.result.parameters(), strict=True)
    )


def test_a_checkpoint_of_another_job_is_not_taken_up(kit, make_context, tmp_path):
    """Other weights at the start, or other options: it would end as neither."""
    cut_off(kit, make_context, OPTIONS, 5, tmp_path, kit.network())
    module = kit.network(5)
    steps = cut_off(kit, make_context, OPTIONS, 10_000, tmp_path, module)
    fresh = make_context()
    train(module, OPTIONS, kit.as_model(module), fresh)

    assert len(steps) == fresh.details["training"]["steps"]


@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, b'{"a": 1}'])
def test_a_damaged_checkpoint_is_as_none(kit, make_context, tmp_path, damage):
    cut_off(kit, make_context, OPTIONS, 5, tmp_path, kit.network())
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(damage)
    assert checkpoint.read(path, "any") is None


@pytest.mark.parametrize("part", [0.4, 0.99])
def test_a_checkpoint_of_which_one_byte_changed_is_as_none(kit, make_context, tmp_path, part):
    cut_off(kit, make_context, OPTIONS, 5, tmp_path, kit.network())
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    with safe_open(path, framework="pt") as file:
        job = json.loads(file.metadata()["state"])["job"]
    assert checkpoint.read(path, job) is not None

    content[int(part * len(content))] ^= 1
    path.write_bytes(content)

    assert checkpoint.read(path, job) is None


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_a_run_killed_with_kill_9_while_training_ends_as_if_it_had_not_been(kit, plain, tmp_path):
    kit.photographs(tmp_path / "photos")
    plain.lay_out(tmp_path, '"distill.logits"\nepochs = 6\nbatch_size = 16\ncheckpoint_every = 4\nema = 0.9')

    def start(out: str, kill_after: int | None) -> int:
        """Run, killing it after some steps; return how many steps it told of."""
        command = [sys.executable, plain.__file__, str(tmp_path), out]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            lines = 0
            for _ in child.stdout:
                lines += 1
                if lines == kill_after:
                    child.send_signal(signal.SIGKILL)
            error = child.stderr.read()
        assert child.returncode == (0 if kill_after is None else -signal.SIGKILL), error
        return lines

    whole = start("whole", None)
    start("run", whole - 3)
    (left,) = (tmp_path / "run").glob("checkpoints/*/*.safetensors")
    assert left.stat().st_size > 0
    again = start("run", None)

    assert again < whole
    assert not (tmp_path / "run" / "checkpoints").exists()
    weights = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for out in ("whole", "run")
        for path in (tmp_path / out).glob("steps/distill.logits-*/weights.safetensors")
    ]
    assert len(weights) == 2
    assert weights[0] == weights[1]
