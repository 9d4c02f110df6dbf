"""``edge-atp``: the command line, without ROS. One module per command, imported when chosen."""

from edge_atp.cli.main import main

__all__ = ["main"]
