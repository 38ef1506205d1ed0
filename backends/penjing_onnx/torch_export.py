"""Calling torch's exporter, quietly and without a trace on the module."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from penjing.errors import StepError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from torch import nn


def float_module(module: nn.Module) -> nn.Module:
    """Return a copy made for export in eval mode; StepError where torch.ao's own modules are in it.

    The exporter cannot trace them (packed weights, observers that read data): a technique that trains with
    fake quantisation calls torch.fake_quantize_per_tensor_affine in its forward instead.
    """
    for name, part in module.named_modules():
        if type(part).__module__.startswith("torch.ao."):
            raise StepError(
                f"{name or 'the network'} is torch.ao's {type(part).__name__}, which cannot be exported.",
                hint="Quantise after onnx.export.",
            )
    return module.eval()


def export(
    module: nn.Module, shape: Sequence[Any], opset: int, outputs: list[str], *, open_batch: bool
) -> ir.Model:
    """Return the graph of `module` for an input of `shape`; StepError says where the exporter failed."""
    import torch

    example = torch.zeros(tuple(shape))
    dynamic = ({0: torch.export.Dim("batch")},) if open_batch else None
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["input"],
                output_names=outputs or None,
                dynamic_shapes=dynamic,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever its stages raise
        raise StepError(
            f"torch's exporter failed: {_reason(error)}",
            hint="Set onnx.export.batch=1: it may be the open batch."
            if open_batch
            else "Data-dependent control flow in forward cannot be exported; the message names the place.",
        ) from error
    if program is None:
        raise StepError("torch's exporter returned nothing.")
    return program.model


def run(module: nn.Module, image: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Run a module on one batch and return its outputs in order."""
    import torch
    from torch.utils._pytree import tree_leaves

    with torch.no_grad():
        outputs = module(torch.from_numpy(image))
    return [output.numpy() for output in tree_leaves(outputs) if output is not None]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: its prints, its warnings about itself, and its log."""
    loggers = [
        logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost cause: the exporter wraps it in a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
