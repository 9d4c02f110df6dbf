# shellcheck shell=sh
# Makes the virtual environment with the ROS 2 wheels a ROS prefix like any other. Set-up copies
# this to .venv/local_setup.*, where the scripts that colcon writes look for it; sourcing
# ros_ws/install/setup.bash then is all it takes, as with an installed ROS 2.

# _edge_atp_prepend NAME FOLDER : put the folder in front of a path list, unless it is in it.
_edge_atp_prepend() {
  eval "_edge_atp_value=\${$1:-}"
  case ":$_edge_atp_value:" in
    *":$2:"*) ;;
    *) export "$1=$2${_edge_atp_value:+:$_edge_atp_value}" ;;
  esac
}

_edge_atp_value=""
export ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
_edge_atp_prepend AMENT_PREFIX_PATH "@VENV@"
_edge_atp_prepend CMAKE_PREFIX_PATH "@VENV@"
_edge_atp_prepend PATH "@VENV@/bin"
for _edge_atp_libs in "@VENV@"/lib/python3.*/site-packages/ros_*.libs "@VENV@/lib"; do
  _edge_atp_prepend LD_LIBRARY_PATH "$_edge_atp_libs"
done
# The wheels start every Python twice to set LD_LIBRARY_PATH, unless told that it is set.
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1

unset -f _edge_atp_prepend
unset _edge_atp_value _edge_atp_libs
