#!/usr/bin/env bash
# Runs on the TPU VM; tools/tpu/tpu.py copies it there and calls it.
#
#   on_vm.sh install                           environment and package, from ~/tf_lrtraj.tar.gz
#   on_vm.sh start BUCKET SECONDS --tpu=… FLAGS…   trains in the background, whatever becomes of the
#                                              connection; copies the workdir to the bucket
#                                              every SECONDS, and its exit code at the end
#   on_vm.sh train …                           the same in the foreground
set -euo pipefail

home=${TF_LRTRAJ_HOME:-$HOME/tf_lrtraj}
environment=$home/environment
workdir=$home/workdir
log=$home/train.log
# The newest of each that start together: later libtpu lack functions that this TensorFlow calls.
packages=("tensorflow-tpu>=2.20,<2.21" "libtpu>=0.0.14,<0.0.28")

install() {
  mkdir -p "$home"
  python3 -m venv --clear "$environment" 2>/dev/null || {
    sudo apt-get -qq update && sudo apt-get -qq install -y python3-venv
    python3 -m venv --clear "$environment"
  }
  "$environment/bin/pip" install --quiet uv
  # TensorFlow for TPUs comes as a package of its own, in place of the one that is asked for.
  echo 'tensorflow ; python_version < "3"' >"$home/overrides.txt"
  "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" \
    --overrides "$home/overrides.txt" "$HOME/tf_lrtraj.tar.gz" "${packages[@]}"
}

copy_to() { # BUCKET: half-written files, which have names of their own, stay here
  gcloud storage rsync --recursive --delete-unmatched-destination-objects \
    --exclude='(^|.*/)\.[^/]*\.tmp(/.*)?$' "$workdir" "$1/workdir" >/dev/null 2>&1 || true
  gcloud storage cp "$log" "$1/train.log" >/dev/null 2>&1 || true
}

train() { # BUCKET SECONDS FLAGS…
  local bucket=$1 seconds=$2 code=0 training copying
  shift 2
  mkdir -p "$workdir"
  # A new VM takes over what the one before it had saved.
  if [[ ! -e $workdir/run.json ]] && gcloud storage ls "$bucket/workdir/run.json" >/dev/null 2>&1; then
    gcloud storage rsync --recursive "$bucket/workdir" "$workdir"
  fi
  "$environment/bin/lrtraj-train" --workdir="$workdir" --strategy=tpu "$@" >>"$log" 2>&1 &
  training=$!
  # The VM is told of its end by SIGTERM, seconds before: enough for a checkpoint.
  trap 'kill -TERM "$training" 2>/dev/null || true' TERM INT
  while sleep "$seconds"; do copy_to "$bucket"; done &
  copying=$!
  wait "$training" || code=$?
  while kill -0 "$training" 2>/dev/null; do # a signal ended `wait`, not the program
    code=0
    wait "$training" || code=$?
  done
  kill "$copying" 2>/dev/null || true
  copy_to "$bucket"
  echo "$code" | gcloud storage cp - "$bucket/exit_code"
}

command=${1:?install, start or train}
shift
case $command in
  install) install ;;
  start)
    mkdir -p "$home"
    if [[ -e $home/pid ]] && kill -0 "$(cat "$home/pid")" 2>/dev/null; then
      echo "it runs already"
      exit
    fi
    gcloud storage rm "$1/exit_code" >/dev/null 2>&1 || true # of an earlier run
    nohup setsid bash "${BASH_SOURCE[0]}" train "$@" >>"$home/on_vm.log" 2>&1 </dev/null &
    echo $! >"$home/pid"
    ;;
  train) train "$@" ;;
  *) echo "on_vm.sh: unknown command $command" >&2; exit 2 ;;
esac
