# shellcheck shell=bash
# Puts the ROS 2 environment of this checkout into the current shell:
#
#   source scripts/env.sh          (bash or zsh; `make setup` comes first)
#
# Sources the workspace (and with it the ROS 2 it was built on), puts the virtual environment on
# PATH, and names the Fast DDS profile that lets images through. For a single command,
# `scripts/with_ros COMMAND` does the same.

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

_edge_atp_workspace="$_edge_atp_root/ros_ws/install/setup.$_edge_atp_shell"
if [ ! -x "$_edge_atp_root/.venv/bin/python" ] || [ ! -f "$_edge_atp_workspace" ]; then
  echo "scripts/env.sh: this checkout is not set up yet; run: make setup" >&2
  unset _edge_atp_root _edge_atp_shell _edge_atp_workspace
  return 1
fi

case ":$PATH:" in
  *":$_edge_atp_root/.venv/bin:"*) ;;
  *) export PATH="$_edge_atp_root/.venv/bin:$PATH" ;;
esac

# The profile for large images reserves 64 MB of shared memory in each process, and the demo
# starts four. Containers have 64 MB in all unless they are started with more.
_edge_atp_profile=fastdds_large_images.xml
_edge_atp_shm_kb=$(df -k --output=size /dev/shm 2>/dev/null | tail -n 1)
if [ "${_edge_atp_shm_kb:-524288}" -lt 262144 ]; then
  _edge_atp_profile=fastdds_little_memory.xml
  echo "scripts/env.sh: /dev/shm has only $((_edge_atp_shm_kb / 1024)) MB, so raw camera images of" \
    "more than 8 MB will be lost between processes; for 4K, start the container with" \
    "--shm-size=512m or --ipc=host" >&2
fi
# A profile of the user's own wins: it may name interfaces or a discovery server. Before the
# workspace, which would name the large one.
export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$_edge_atp_root/launch/$_edge_atp_profile}"

# shellcheck disable=SC1090 # written by the build
. "$_edge_atp_workspace"

unset _edge_atp_root _edge_atp_shell _edge_atp_workspace _edge_atp_profile _edge_atp_shm_kb
