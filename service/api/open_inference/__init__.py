"""The Open Inference Protocol, version 2: tensors in and tensors out, under `/v2`."""
