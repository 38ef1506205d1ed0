"""The deep learning accelerator (DLA) of Jetson boards: what it can run, and making a network fit it."""
