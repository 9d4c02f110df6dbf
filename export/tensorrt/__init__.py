"""From ONNX graphs to TensorRT engines, on the device that will run them.

``python -m export tensorrt DIR``. The ONNX graphs stay the source of truth; engines are added to
the directory and to its manifest.
"""
