# shellcheck shell=bash
# Progress of long steps: one line per step with its duration, everything else into a log.
# Sourced by setup.sh, which sets SETUP_LOG.

# say TEXT... : a line for the reader and the log.
say() {
  printf '%s\n' "$*"
  printf '== %s\n' "$*" >>"$SETUP_LOG"
}

# fail TEXT... : stop with an error that says what to do.
fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# step LABEL COMMAND... : run the command, its output into the log, the time on screen. On a
# terminal the line follows the log; elsewhere a sign of life comes every 30 s. When the
# command fails, the end of the log is shown and setup stops.
step() {
  local label=$1 started=$SECONDS next_sign=30 pid status=0 elapsed mark
  shift
  printf '== %s: %s\n' "$label" "$*" >>"$SETUP_LOG"
  mark=$(wc -l <"$SETUP_LOG")
  set -m # a process group of its own, to be ended as a whole
  "$@" >>"$SETUP_LOG" 2>&1 </dev/null &
  pid=$!
  set +m
  # shellcheck disable=SC2064 # the pid of now is meant
  trap "kill -- -$pid 2>/dev/null || true; wait $pid 2>/dev/null || true; echo; exit 130" INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    elapsed=$((SECONDS - started))
    if [ -t 1 ]; then
      printf '\r\033[K  ... %s (%d s) %.50s' "$label" "$elapsed" \
        "$(tail -n 1 "$SETUP_LOG" | tr -d '\r\033')"
    elif [ "$elapsed" -ge "$next_sign" ]; then
      printf '  ... %s (%d s)\n' "$label" "$elapsed"
      next_sign=$((next_sign + 30))
    fi
  done
  wait "$pid" || status=$?
  trap - INT TERM
  [ -t 1 ] && printf '\r\033[K'
  elapsed=$((SECONDS - started))
  if [ "$status" -ne 0 ]; then
    printf '  FAILED %s (%d s)\n' "$label" "$elapsed"
    tail -n +"$((mark + 1))" "$SETUP_LOG" | tail -n 40 | sed 's/^/    | /'
    fail "'$label' failed with status $status; the whole log: $SETUP_LOG"
  fi
  printf '  done %s (%d s)\n' "$label" "$elapsed"
}
