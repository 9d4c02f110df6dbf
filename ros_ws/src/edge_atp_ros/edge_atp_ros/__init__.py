"""ROS 2 nodes of the package `edge_atp`: questions and camera images in, answers and masks out.

The inference itself is in the core library `edge_atp`, which knows nothing of ROS.
"""
