"""Gridloop: typed REST inference for CNNs and RNNs exported to ONNX."""

__version__ = "0.1.0"
