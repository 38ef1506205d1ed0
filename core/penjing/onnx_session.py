"""Sessions of ONNX Runtime on the CPU, opened in one way wherever a graph is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penjing.errors import InputError, StepError, first_line

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import onnxruntime as ort

    from penjing.model import Model

    Array = np.ndarray[Any, Any]

HINT = "`penjing doctor` tells which opset and IR version it reads."


def load(
    graph: str | Path | bytes,
    *,
    name: str = "the graph",
    threads: int = 1,
    floats: bool = False,
    optimise: bool = True,
    optimised: str = "",
    profile: str = "",
    role: str = "",
) -> ort.InferenceSession:
    """Return a session of a file, or of a graph's bytes, on `threads` threads (0: all there are).

    `floats` computes in floats what stands between QuantizeLinear and DequantizeLinear: kernels of this CPU may round
    and saturate in other ways than those of the device. Without `optimise` the graph is carried out as it stands;
    `optimised` names a file to write the optimised graph to, and `profile` how the one begins that `end_profiling`
    writes. `name` and `role` are for the message of the StepError
    that is raised where it cannot be loaded.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    # threads that spin on after a run would steal the cores of the model timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if floats:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised:
        options.optimized_model_filepath = optimised
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    try:
        return ort.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise StepError(
            f"ONNX Runtime {ort.__version__}{role} cannot load {name}: {first_line(error)}", hint=HINT
        ) from error


class ImageSession:
    """A session with one image input, as a backend's `open` returns it."""

    def __init__(self, session: ort.InferenceSession, model: Model) -> None:
        inputs = session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(entry.name for entry in inputs)
            raise InputError(f"The model has {len(inputs)} inputs ({names}); photographs can feed one.")
        self._session, self._input, self._model = session, inputs[0].name, model

    def __call__(self, batch: Array) -> list[Array]:
        """Run one batch, float32 NCHW."""
        try:
            outputs: list[Array] = self._session.run(None, {self._input: batch})
        except Exception as error:  # as above
            raise StepError(
                f"The model does not take a batch of shape {list(batch.shape)}: {first_line(error)}",
                hint="Compare --preprocess with the model's input, " + str(self._model.inputs[0]) + ".",
            ) from error
        return outputs
