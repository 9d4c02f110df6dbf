"""The warehouse cell, simulated: physics, pictures, ROS node, and the closed loop of `make sim`.

Run from a checkout; imports ``models.warehouse_tiny`` for scenes and pictures, and nothing
imports it.
"""
