#!/usr/bin/env bash
# Trains on a TPU pod of Google Cloud, from its creation to its deletion.
#
#   launch/tpu_pod.sh [--dry-run] create            asks for the pod, waits until it is there
#   launch/tpu_pod.sh [--dry-run] install           the code at REVISION, its packages, the bucket
#   launch/tpu_pod.sh [--dry-run] run ARGS...       trains; finds a training that is running already;
#                                                   Ctrl-C leaves it running
#   launch/tpu_pod.sh [--dry-run] logs              shows a worker's log as it grows
#   launch/tpu_pod.sh [--dry-run] delete            deletes the pod
#   launch/tpu_pod.sh [--dry-run] all ARGS...       create, install, run; again when the pod was
#                                                   preempted or the exit code is 75; delete,
#                                                   after Ctrl-C and after a failure too
#
# ARGS are those of the training, for example --config=configs/mae_l2.py --workdir=/mnt/gcs/mae.
# --dry-run prints every command, to be pasted, and executes none.
# Environment:
#   NAME PROJECT ZONE            of the pod: `all` takes over one of this name, and deletes it
#   ACCELERATOR RUNTIME SPOT     create: for example v5litepod-64, v2-alpha-tpuv5-lite, 1 (or 0)
#   REPO REVISION BUCKET         install: a git URL, a commit, a bucket's name (to be /mnt/gcs)
#   KEEP=1                       all: leave the pod, which costs money, whatever happens
#   LOGS                         folder of the workers' logs (logs/NAME)
#   WORKER                       whose log `logs` shows (0)
#   POLL                         seconds between two looks at the pod's state (30)
# Exit codes: the training's; 2 for a mistake here.
# shellcheck disable=SC2153 # NAME and the others come from the environment
set -uo pipefail

say() { echo "tpu_pod.sh: $*" >&2; }

quoted() { # the words as one line for a shell
  local word line=""
  for word in "$@"; do
    # shellcheck disable=SC2001 # what ${word//} makes of quotes differs between versions of bash
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="'$(sed "s/'/'\\\\''/g" <<<"$word")'"
    line+=" $word"
  done
  echo "${line# }"
}

execute() { # the one place where anything is executed
  if [[ $dry ]]; then quoted "$@"; else "$@"; fi
}

pause() { [[ $dry ]] || sleep "$poll"; }

on_pod() { # SUBCOMMAND WORDS...: of gcloud compute tpus queued-resources
  local subcommand=$1
  shift
  execute gcloud compute tpus queued-resources "$subcommand" "$NAME" \
    --project="$PROJECT" --zone="$ZONE" "$@"
}

on_workers() { # WORKER|all COMMAND: the command in the shell of workers
  execute gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" \
    --worker="$1" --ssh-flag="-o ServerAliveInterval=30 -o ConnectTimeout=20" --command="$2"
}

look() { # sets state to the pod's, NONE or UNKNOWN; a dry run takes it to be $1
  local answer
  if [[ $dry ]]; then
    on_pod describe --format='value(state.state)'
    state=$1
  elif answer=$(on_pod describe --format='value(state.state)' 2>&1); then
    state=${answer##*$'\n'}
  elif [[ $answer == *NOT_FOUND* ]]; then
    state=NONE
  else
    say "$answer"
    state=UNKNOWN
  fi
}

gone() { # was the pod preempted, or has it failed?
  [[ $state =~ ^(SUSPENDING|SUSPENDED|FAILED|DELETING|NONE)$ ]]
}

create() {
  local spot=() before=''
  if [[ $SPOT == 1 ]]; then spot=(--spot); fi
  look NONE
  if [[ $state == NONE ]]; then
    ( # cut off by a Ctrl-C, it might go on unseen
      trap '' HUP INT TERM
      on_pod create --node-id="$NAME" --accelerator-type="$ACCELERATOR" \
        --runtime-version="$RUNTIME" ${spot[@]+"${spot[@]}"}
    ) || return
  fi
  while look ACTIVE; do
    [[ $state == "$before" ]] || say "$NAME is $state."
    before=$state
    [[ $state != ACTIVE ]] || return 0
    ! gone || return 1
    pause
  done
}

install() {
  local clone
  clone="test -d adv_ssl || git clone --quiet $(quoted "$REPO") adv_ssl"
  on_workers all "{ $clone; } && cd adv_ssl && git fetch --quiet origin &&\
 git checkout --quiet $(quoted "$REVISION") &&\
 bash launch/worker.sh install tpu $(quoted "$BUCKET")"
}

split() { # lines "WORKER TEXT" -> FOLDER/WORKER.log, at once, which not every awk does
  local line
  while IFS= read -r line; do
    printf '%s\n' "${line#* }" >>"$1/${line%% *}.log"
  done
}

stream() { # FOLDER ARGS...
  local folder=$1
  shift
  if [[ $dry ]]; then
    on_workers all "bash adv_ssl/launch/worker.sh run $(quoted "$@")"
  else
    on_workers all "bash adv_ssl/launch/worker.sh run $(quoted "$@")" | split "$folder"
  fi
}

follow() { # the training's exit code: a 1 or 2 of any worker, else a 75; 255: the connection broke
  local folder codes
  folder=$logs/$(date -u +%Y%m%dT%H%M%SZ)-$((++connections))
  execute mkdir -p "$folder" || return 2
  say "the logs are in $folder."
  stream "$folder" "$@" &
  streaming=$!
  wait "$streaming" && streaming='' && return 0
  streaming=''
  codes=$(tail -q -n 1 "$folder"/*.log 2>/dev/null)
  [[ ! $codes =~ "exit code "([12])($'\n'|$) ]] || return "${BASH_REMATCH[1]}"
  [[ ! $codes =~ "exit code 75" ]] || return 75
  return 255
}

run() { # as follow, and finds the training again when the connection broke and the pod is there
  local began broken=0 code
  while ((broken < 10)); do
    began=$SECONDS
    follow "$@"
    code=$?
    ((code == 255)) || return "$code"
    look ACTIVE
    ! gone || return 255
    if ((SECONDS - began < 60)); then ((++broken)); else broken=0; fi
    say "the connection to a worker broke: looking for the training again."
    pause
  done
  return 255
}

delete() {
  local attempt
  for attempt in 1 2 3; do
    on_pod delete --force --quiet && return 0
    look NONE
    [[ $state != NONE ]] || return 0
    say "deleting $NAME failed, attempt $attempt of 3."
    pause
  done
  say "$NAME MAY STILL COST MONEY. Delete it: $(dry=yes on_pod delete --force)"
  return 1
}

detach() {
  say "the training goes on: run shows it again, delete ends it."
  [[ ! $streaming ]] || pkill -TERM -P "$streaming"
  exit 130
}

cleanup() { # at the end, whatever it is; nothing interrupts it
  local code=$?
  trap '' INT TERM HUP
  trap - EXIT
  if [[ $streaming ]]; then
    say "stopping the training, which saves first."
    on_workers all "bash adv_ssl/launch/worker.sh stop"
    wait "$streaming"
  fi
  if [[ $KEEP == 1 ]]; then
    say "$NAME is kept and costs money: launch/tpu_pod.sh delete"
  else
    delete || code=1
  fi
  exit "$code"
}

all() {
  local fruitless=0 began code
  trap cleanup EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  while :; do
    began=''
    create && install && began=$SECONDS && run "$@"
    code=$?
    ((code != 0)) || return 0
    if [[ $began ]]; then # 1 and 2 are the training's: not to be started again
      ((code > 2)) || return "$code"
    else # a pod that is there or was refused: the fault is ours
      look ACTIVE
      gone && [[ $state != NONE ]] || return "$code"
    fi
    if [[ $began ]] && ((SECONDS - began >= 300)); then fruitless=0; else ((++fruitless)); fi
    if ((fruitless == 3)); then
      say "three pods in a row got nowhere: giving up."
      return 1
    fi
    say "exit code $code: a new pod, and the same command again."
    delete || return
  done
}

need() { # NAMES...: of environment variables
  local name
  for name in "$@"; do
    [[ ${!name-} ]] || { say "$name is not set: see the head of $0." && exit 2; }
  done
}

dry='' state='' streaming='' connections=0
if [[ ${1-} == --dry-run ]]; then
  dry=yes
  shift
fi
command=${1-}
case $command in
  create) need NAME PROJECT ZONE ACCELERATOR RUNTIME SPOT ;;
  install) need NAME PROJECT ZONE REPO REVISION BUCKET ;;
  run | logs | delete) need NAME PROJECT ZONE ;;
  all) need NAME PROJECT ZONE ACCELERATOR RUNTIME SPOT REPO REVISION BUCKET ;;
  *) say "create, install, run, logs, delete or all, not '$command': see the head of $0." && exit 2 ;;
esac
[[ ${SPOT-0} =~ ^[01]$ ]] || { say "SPOT=$SPOT: 1, preemptible and cheap, or 0." && exit 2; }
KEEP=${KEEP-0} poll=${POLL-30} logs=${LOGS-logs/$NAME}
case $command in
  run | all)
    [[ $# -gt 1 ]] || { say "$command: the training's arguments are missing." && exit 2; }
    trap detach INT TERM HUP
    "$@"
    ;;
  logs) on_workers "${WORKER-0}" "bash adv_ssl/launch/worker.sh log" ;;
  *) "$command" ;;
esac
