"""Speed and memory of a model directory: measured here, or projected for a published device."""
