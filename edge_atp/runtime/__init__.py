"""Inference on the robot without torch: model directories, backends, engine.

Usage: ``Engine.load(ModelDirectory.open(path))``; see ``engine`` and ``model_dir``.
"""
