"""The simulated cell: camera and arm in MuJoCo, the VLM node, a planner that carries out orders.

    ros2 launch edge_atp sim.launch.py
    ros2 launch edge_atp sim.launch.py seed:=5 num_orders:=2
    ros2 topic echo /pick_and_place/event

Needs a checkout with MuJoCo (`make sim` sets both up and runs the same without ros2 launch). What
runs stands in edge_atp_ros.simulation; this file only turns it into launch actions.
"""

from edge_atp_ros.launching import argument, common_arguments, describe
from edge_atp_ros.simulation import SimArguments, simulation

ARGUMENTS = [
    *common_arguments("params/sim.yaml"),
    argument("seed", "Picks the scene and the orders.", 3),
    argument("num_orders", "Orders that the cell hands out at the start.", 3),
    argument("rate", "Speed of simulated time; the machine may not keep up.", 1.0),
    argument("hazard", "On the floor at the start.", "", choices=["", "person", "cone", "pallet"]),
    argument("planner", "Run the pick-and-place planner.", True),
    argument("use_respawn", "Start a node again when its process ends.", False),
]


def generate_launch_description():
    return describe(ARGUMENTS, SimArguments, simulation)
