#!/usr/bin/env bash
# Trains on this machine, with all its devices, and starts again as long as the exit code is 75.
#
#   launch/local.sh --config=FILE --workdir=DIR [what else the command takes]
#
# SIGTERM and Ctrl-C go on to the training, which saves and leaves with 75; then this ends too.
# Environment:
#   PYTHON     the interpreter (python)
#   PROCESSES  number of processes on this machine, on the CPU, to try out many hosts (1)
#   DEVICES    devices of each, where PROCESSES are several (1)
set -uo pipefail

python=${PYTHON:-python}
processes=${PROCESSES:-1}
devices=${DEVICES:-1}
quick=300 # seconds: a run that ends with 75 before that has got nowhere
limit=3  # such runs in a row: then we give up
children=()
stopped=

say() { echo "local.sh: $*" >&2; }

for number in "PROCESSES=$processes" "DEVICES=$devices"; do
  [[ $number =~ =[1-9][0-9]*$ ]] || { say "$number: must be 1 or more." && exit 2; }
done

if ((processes == 1 && devices > 1)); then
  say "DEVICES=$devices is for several PROCESSES: one uses all devices." && exit 2
fi

end() {
  stopped=yes
  ((${#children[@]} == 0)) || kill -TERM "${children[@]}" 2>/dev/null
}
trap end TERM INT HUP

start() { # the command's arguments; fills children
  children=()
  if ((processes == 1)); then
    "$python" -m adv_ssl.main "$@" &
    children=($!)
    return
  fi
  local process coordinator=127.0.0.1:$((20000 + RANDOM % 10000))
  for ((process = 0; process < processes; process++)); do
    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices "$python" -m adv_ssl.main "$@" \
      --coordinator="$coordinator" --processes="$processes" --process="$process" &
    children+=($!)
  done
}

code_of() { # PID: waits for its end; a signal that we forward interrupts a wait
  while kill -0 "$1" 2>/dev/null; do wait "$1"; done
  wait "$1"
}

finish() { # the exit code of all: a 1 or 2 of any, else a 75 of any, else the first that is not 0
  local child code worst=0
  for child in "${children[@]}"; do
    code_of "$child"
    code=$?
    case $worst:$code in
      1:* | 2:* | *:0) ;;
      *:1 | *:2 | *:75 | 0:*) worst=$code ;;
    esac
  done
  return "$worst"
}

runs=0
while [[ ! $stopped ]]; do
  began=$SECONDS
  start "$@"
  [[ ! $stopped ]] || end # a signal that came while we started
  finish
  code=$?
  ((code == 75)) || exit "$code"
  if ((SECONDS - began < quick)); then ((++runs)); else runs=0; fi
  if ((runs == limit)); then
    say "exit code 75 within $quick seconds, $limit times in a row: giving up."
    exit 1
  fi
  [[ $stopped ]] || say "exit code 75: starting again."
done
exit 75
