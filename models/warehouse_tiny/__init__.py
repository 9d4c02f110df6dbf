"""warehouse_tiny: scene generator, training recipe and weights of the default model.

Needs MuJoCo for rendering and torch + transformers for training; the robot runtime needs neither.
"""
