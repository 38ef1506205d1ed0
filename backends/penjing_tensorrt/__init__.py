"""TensorRT, and the deep learning accelerator of Jetson boards."""
