//! Calibrated quantization: the same format and size as round-to-nearest, closer to the float model.
