# shellcheck shell=bash
# Choice of the Python interpreter. Sourced by setup.sh; needs fail() of progress.sh.

# unsuitable PYTHON ROS_MODE : prints why an interpreter cannot be used, nothing if it can.
# A file on PATH proves little: a pyenv shim exists for versions that are not switched on.
unsuitable() {
  local out
  out=$("$1" - "$2" 2>/dev/null <<'PYTHON'
import importlib.util
import os
import sys
import sysconfig

version = "%d.%d" % sys.version_info[:2]
package = "python%s" % version
found = []
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    found.append("is Python %s, needed is 3.10, 3.11 or 3.12" % version)
else:
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        found.append("has no venv (apt install %s-venv)" % package)
    if not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")):
        found.append("has no C headers (apt install %s-dev)" % package)
    if sys.argv[1] == "installed":
        try:
            import rclpy
        except ImportError as error:
            reason = str(error).splitlines()[0]
            found.append("cannot import the sourced ROS 2's rclpy: %s" % reason)
print("; ".join(found) or "suitable")
PYTHON
  ) || out="does not run"
  [ "$out" = suitable ] || printf '%s' "${out:-does not run}"
}

# find_python ROS_MODE : prints the path of the first suitable interpreter. $PYTHON, if set,
# is the only candidate.
find_python() {
  local mode=$1 name path reason tried=""
  for name in ${PYTHON:-python3.12 python3.11 python3.10 python3}; do
    while read -r path; do
      [ -n "$path" ] || continue
      reason=$(unsuitable "$path" "$mode")
      if [ -z "$reason" ]; then
        printf '%s\n' "$path"
        return 0
      fi
      tried="$tried"$'\n'"  $path $reason"
    done < <(type -aP "$name")
  done
  fail "no suitable Python (3.10 to 3.12 with venv and C headers).${tried:-$'\n'  none of ${PYTHON:-python3.12, python3.11, python3.10, python3} is on PATH}
On Debian and Ubuntu: apt install python3 python3-venv python3-dev
Another interpreter can be named: PYTHON=/path/to/python3.12 make setup"
}

# require_compiler : stops when there is no C or C++ compiler for the message packages.
require_compiler() {
  command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    fail "no C++ compiler (${CXX:-c++}, g++). On Debian and Ubuntu: apt install g++"
  command -v "${CC:-cc}" >/dev/null || command -v gcc >/dev/null ||
    fail "no C compiler (${CC:-cc}, gcc). On Debian and Ubuntu: apt install gcc"
}
