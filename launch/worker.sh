#!/usr/bin/env bash
# Run by tpu_pod.sh and skypilot.yaml on each rented machine, in a clone of the project.
#
#   worker.sh install EXTRA BUCKET   Python 3.11, the locked packages, those of EXTRA (tpu or cuda);
#                                    the bucket at /mnt/gcs
#   worker.sh run ARGS...            starts the training, or finds it running; its log to the end
#   worker.sh log                    the log of the training so far and as it grows
#   worker.sh stop                   SIGTERM to the training; waits until it has saved and left
#
# The training lives on when the connection breaks: `run` again shows all of its log. The log's last
# line is "exit code N". Lines of `run` begin with the worker's name.
set -euo pipefail

cd "$(dirname "$0")/.."
log=~/adv_ssl.log
pid=~/adv_ssl.pid
mount=/mnt/gcs

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc url=https://packages.cloud.google.com/apt release
  release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  curl -sS "$url/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $url gcsfuse-$release main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y gcsfuse
}

mount_bucket() { # BUCKET; without cached metadata: all hosts must see the same newest checkpoint
  mountpoint -q "$mount" && return
  command -v gcsfuse >/dev/null || install_gcsfuse
  sudo mkdir -p "$mount"
  sudo chown "$(id -u)" "$mount"
  gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$mount"
}

install_packages() { # EXTRA; images of TPUs have an older Python
  local uv=~/.local/bin/uv
  [[ -x $uv ]] || curl -sSfL https://astral.sh/uv/install.sh | env UV_NO_MODIFY_PATH=1 sh
  "$uv" venv --quiet --allow-existing --python=3.11 .venv
  "$uv" pip install --quiet --python=.venv --require-hashes -r requirements.lock
  "$uv" pip install --quiet --python=.venv -e ".[$1]"
}

alive() { [[ -e $pid ]] && kill -0 "$(<"$pid")" 2>/dev/null; }

train() { # in a session of its own, without a terminal
  local code=0
  TFDS_DATA_DIR=${TFDS_DATA_DIR:-$mount/tfds} .venv/bin/python -m adv_ssl.main "$@" || code=$?
  echo "exit code $code"
}

run() {
  if ! alive; then
    : >"$log"
    setsid bash launch/worker.sh train "$@" >>"$log" 2>&1 </dev/null &
    echo $! >"$pid"
  fi
  tail -n +1 -f --pid="$(<"$pid")" "$log" | sed -u "s/^/$(hostname) /"
  local code
  code=$(sed -n '$s/^exit code //p' "$log")
  exit "${code:-255}"
}

stop() {
  alive || return 0
  pkill -TERM -P "$(<"$pid")" || true
  timeout 120 tail -f --pid="$(<"$pid")" /dev/null
}

case ${1-} in
  install)
    mount_bucket "$3"
    install_packages "$2"
    ;;
  run | train | stop) "$@" ;;
  log) tail -n +1 -F "$log" ;;
  *) echo "worker.sh: install EXTRA BUCKET, run ARGS, log or stop, not '${1-}'." >&2 && exit 2 ;;
esac
