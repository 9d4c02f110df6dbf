"""Checkpoint to model directory: ``python -m export --model PATH --out DIR``.

Runs from a checkout on a workstation, never on the robot. Reads safetensors, emits ONNX graphs
from the tensors, compares them with the Hugging Face model, writes the manifest.
"""
