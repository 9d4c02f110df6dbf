# shellcheck shell=bash
# Puts the ROS 2 environment of this checkout into the current shell:
#
#   source scripts/env.sh          (bash or zsh; `make setup` comes first)
#
# Sets AMENT_PREFIX_PATH, CMAKE_PREFIX_PATH, LD_LIBRARY_PATH, PYTHONPATH and PATH so that
# rclpy, edge_atp_msgs and the nodes are found, and names the Fast DDS profile that lets
# images through. For a single command, `scripts/with_ros COMMAND` does the same.
#
# Not for a robot's own workspace: there, source the robot's set-up file and ros_ws/install.

if [ -n "${BASH_VERSION:-}" ]; then
  _edge_atp_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  _edge_atp_shell=bash
elif [ -n "${ZSH_VERSION:-}" ]; then
  # shellcheck disable=SC2296 # zsh's way to name the sourced file
  _edge_atp_root=$(cd "$(dirname "${(%):-%x}")/.." && pwd)
  _edge_atp_shell=zsh
else
  echo "scripts/env.sh: needs bash or zsh; from another shell use scripts/with_ros COMMAND" >&2
  return 1
fi

_edge_atp_venv="$_edge_atp_root/.venv"
_edge_atp_install="$_edge_atp_root/ros_ws/install/local_setup.$_edge_atp_shell"
if [ ! -x "$_edge_atp_venv/bin/python" ] || [ ! -f "$_edge_atp_install" ]; then
  echo "scripts/env.sh: this checkout is not set up yet; run: make setup" >&2
  unset _edge_atp_root _edge_atp_shell _edge_atp_venv _edge_atp_install
  return 1
fi

if grep -qi '^include-system-site-packages *= *true' "$_edge_atp_venv/pyvenv.cfg"; then
  # Made for the machine's own ROS 2, which has to be on the paths already.
  if [ -z "${ROS_DISTRO:-}" ] || [ -z "${AMENT_PREFIX_PATH:-}" ]; then
    echo "scripts/env.sh: .venv was made for an installed ROS 2; source its setup file first" \
      "(for example: source /opt/ros/jazzy/setup.bash)" >&2
    unset _edge_atp_root _edge_atp_shell _edge_atp_venv _edge_atp_install
    return 1
  fi
else
  # ROS 2 from wheels: the virtual environment is the ROS prefix.
  export ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
  # The wheels start every Python twice to set LD_LIBRARY_PATH, unless told that it is set.
  export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
  for _edge_atp_name in AMENT_PREFIX_PATH CMAKE_PREFIX_PATH; do
    eval "_edge_atp_value=\${$_edge_atp_name:-}"
    case ":$_edge_atp_value:" in
      *":$_edge_atp_venv:"*) ;;
      *) export "$_edge_atp_name=$_edge_atp_venv${_edge_atp_value:+:$_edge_atp_value}" ;;
    esac
  done
  for _edge_atp_value in "$_edge_atp_venv"/lib/python3.*/site-packages/ros_*.libs \
    "$_edge_atp_venv/lib"; do
    case ":${LD_LIBRARY_PATH:-}:" in
      *":$_edge_atp_value:"*) ;;
      *) export LD_LIBRARY_PATH="$_edge_atp_value${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" ;;
    esac
  done
fi

case ":$PATH:" in
  *":$_edge_atp_venv/bin:"*) ;;
  *) export PATH="$_edge_atp_venv/bin:$PATH" ;;
esac

# colcon's script asks a Python for the order of the packages; the first one on PATH is ours.
# shellcheck disable=SC1090 # written by the build
. "$_edge_atp_install"

# A profile of the user's own wins: it may name interfaces or a discovery server.
export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$_edge_atp_root/launch/fastdds_large_images.xml}"

# The profile reserves 64 MB of shared memory per process; the demo starts four.
_edge_atp_value=$(df -k --output=size /dev/shm 2>/dev/null | tail -n 1)
if [ "${_edge_atp_value:-524288}" -lt 262144 ]; then
  echo "scripts/env.sh: /dev/shm has only $((_edge_atp_value / 1024)) MB, so raw camera images will" \
    "be lost between processes; start the container with --shm-size=512m or --ipc=host" >&2
fi

unset _edge_atp_root _edge_atp_shell _edge_atp_venv _edge_atp_install _edge_atp_name _edge_atp_value
