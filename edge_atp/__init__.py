"""edge_atp: answer questions about camera frames with only the visual tokens that matter.

The core library. It never imports ROS (see ``ros_ws/``) and needs no torch at run time (only
``edge_atp.hf`` does).
"""

__version__ = "0.1.0"
