"""Gridloop: typed REST inference for CNNs and RNNs exported to ONNX."""

import os

__version__ = "0.1.0"

# ONNX Runtime reads this when it is imported, which more than one module does: nothing that serves models phones home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
