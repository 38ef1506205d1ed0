"""Quantise an ONNX file with nncf at its most accurate settings. Runs in nncf's own environment, not in Penjing's.

python nncf_peer.py FLOAT.onnx CALIBRATION.npy RESULT.onnx accurate|fast
"""

import sys

import nncf
import numpy as np
import onnx


def main() -> None:
    """Read the float network and the photographs [N, channels, height, width], and write the result."""
    source, photographs, target, correction = sys.argv[1:]
    model = onnx.load(source)
    name = model.graph.input[0].name
    images = np.load(photographs, mmap_mode="r")
    dataset = nncf.Dataset(images, lambda image: {name: np.array(image[None])})
    preset = nncf.QuantizationPreset.MIXED  # symmetric weights, asymmetric activations
    best = nncf.quantize(
        model, dataset, preset=preset, fast_bias_correction=correction == "fast", subset_size=len(images)
    )
    onnx.save(best, target)


if __name__ == "__main__":
    main()
