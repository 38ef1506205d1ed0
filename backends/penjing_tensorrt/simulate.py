"""A graph for TensorRT, run on a CPU: ONNX Runtime computes Q/DQ in floats, so that its answers are the engine's.

What differs is what TensorRT leaves to each GPU: sums in another order, and half precision where an engine
takes it. A graph's own float16 tensors are rounded as float16 rounds them (`rounding`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penjing.errors import InputError, StepError

if TYPE_CHECKING:
    import numpy as np
    from penjing.model import Model

    Array = np.ndarray[Any, Any]


class Session:
    """A graph with one image input."""

    def __init__(self, model: Model) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # integer kernels of a CPU round and saturate in their own way
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                _graph(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise StepError(
                f"ONNX Runtime {onnxruntime.__version__}, which stands in for TensorRT here, cannot load "
                f"{model.value}: {_first_line(error)}",
                hint="`penjing doctor` tells which opset and IR version it reads.",
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(entry.name for entry in inputs)
            raise InputError(f"The model has {len(inputs)} inputs ({names}); photographs can feed one.")
        self._input, self._model = inputs[0].name, model

    def __call__(self, batch: Array) -> list[Array]:
        """Run one batch, float32 NCHW."""
        try:
            outputs: list[Array] = self._session.run(None, {self._input: batch})
        except Exception as error:  # as above
            raise StepError(
                f"The model does not take a batch of shape {list(batch.shape)}: {_first_line(error)}",
                hint="Compare --preprocess with the model's input, " + str(self._model.inputs[0]) + ".",
            ) from error
        return outputs


def _graph(model: Model) -> str | bytes:
    """Return the path of a graph, or where float16 is in it the bytes of one that rounds to it."""
    import onnx

    from penjing_tensorrt.rounding import rounded

    loaded = onnx.load(model.value, load_external_data=False)
    simulated = rounded(loaded)
    return str(model.value) if simulated is loaded else simulated.SerializeToString()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
