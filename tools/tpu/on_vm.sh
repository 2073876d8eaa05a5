#!/usr/bin/env bash
# Runs on the TPU VM; tools/tpu/tpu.py copies it there and calls it.
#
#   on_vm.sh install COMMIT    installs environment and package from ~/tf_lrtraj.tar.gz; records
#                              COMMIT last
#   on_vm.sh start TPU BUCKET SECONDS --tpu=… FLAGS…   trains in the background, independent of
#                              the connection; copies the workdir to the bucket every SECONDS, and
#                              at the end, with the exit code, which until then is `running on TPU`;
#                              fails if BUCKET cannot be written
#   on_vm.sh state             prints one line, `tf_lrtraj: PROGRAM COMMIT BUCKET`, with `none` for
#                              missing entries; PROGRAM is running, ended:CODE, or unsaved:CODE if
#                              the last copy to the bucket failed
#   on_vm.sh train …           the program that `start` runs in the background
set -euo pipefail
export CLOUDSDK_CORE_DISABLE_PROMPTS=1 # no one is here to answer

home=${TF_LRTRAJ_HOME:-$HOME/tf_lrtraj}
environment=$home/environment
# The folder appears only when it is complete, because copies delete missing files from the bucket.
workdir=$home/workdir
log=$home/train.log
lock=$home/lock # held for as long as anything trains; the system lets go of it in a crash, too
# The newest versions that work together: later libtpu lacks functions that this TensorFlow calls.
packages=("tensorflow-tpu>=2.20,<2.21" "libtpu>=0.0.14,<0.0.28")
tries=3
pause=${TF_LRTRAJ_PAUSE:-20} # seconds between tries
longest=${TF_LRTRAJ_LONGEST:-1800} # seconds a copy may take; a longer one is tried again
failed=4                     # exit code where a command of gcloud failed
resumable=75                 # exit code of a run that was asked to stop
said="" bucket="" seconds="" training="" copying=""

give_up() { # MESSAGE
  echo "on_vm.sh: $1" >&2
  exit "$failed"
}

insist() { # COMMAND…: several tries; its output is in `said`, and told where it fails
  local try
  for ((try = 1; try <= tries; try++)); do
    if said=$("$@" 2>&1 </dev/null); then return 0; fi
    tail -n 3 <<<"$said" >&2
    if ((try < tries)); then sleep "$pause"; fi
  done
  return 1
}

gcloud() { # one that hangs must not keep the run from its end
  timeout --kill-after=30 "$longest" gcloud "$@"
}

put() { # URL TEXT
  echo "$2" | gcloud storage cp - "$1"
}

runs() {
  [[ -e $lock ]] && ! flock --nonblock "$lock" true
}

held() { # the bucket of the run that is on this machine
  cat "$home/bucket" 2>/dev/null || echo unknown
}

install() { # COMMIT
  mkdir -p "$home"
  exec 8>"$home/installing"
  flock --wait 900 8 || give_up "another installation has been under way for 15 minutes"
  if runs; then give_up "another run: its environment stays as it is"; fi
  rm -f "$home/commit"
  python3 -m venv --clear "$environment" 2>/dev/null || {
    sudo apt-get -qq update && sudo apt-get -qq install -y python3-venv
    python3 -m venv --clear "$environment"
  }
  "$environment/bin/pip" install --quiet uv
  # TensorFlow for TPUs is a separate package, which replaces the required one.
  echo 'tensorflow ; python_version < "3"' >"$home/overrides.txt"
  "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" \
    --overrides "$home/overrides.txt" "$HOME/tf_lrtraj.tar.gz" "${packages[@]}"
  echo "$1" >"$home/commit"
}

start() { # TPU BUCKET SECONDS FLAGS…
  local tpu=$1
  shift
  mkdir -p "$home"
  exec 9>"$lock"
  if ! flock --wait 5 9; then
    [[ $(held) == "$1" ]] || give_up "another run: $(held) is under way here. Received: $1"
    echo "it runs already"
    return
  fi
  if [[ -e $workdir && $(held) != "$1" ]]; then
    give_up "another run: the workdir here is of $(held). Received: $1"
  fi
  echo "$1" >"$home/bucket"
  # Written twice, because overwriting needs a separate permission. This also replaces the exit
  # code of an earlier run.
  if ! insist put "$1/exit_code" "running on $tpu" ||
    ! insist put "$1/exit_code" "running on $tpu"; then
    if [[ -e $workdir ]]; then give_up "only here: $workdir, as $1 can no longer be written"; fi
    give_up "refused: this machine cannot write to $1. May its service account?"
  fi
  rm -f "$home/exit_code"
  nohup setsid bash "${BASH_SOURCE[0]}" train "$@" >>"$log" 2>&1 </dev/null & # keeps the lock
  echo $! >"$home/pid"
}

state() {
  local program=none commit=none of=none
  if runs; then
    program=running
  elif [[ -e $home/exit_code ]]; then
    program=$(<"$home/exit_code")
  fi
  if [[ -e $home/commit ]]; then commit=$(<"$home/commit"); fi
  if [[ $program == running || -e $workdir ]]; then of=$(held); fi
  echo "tf_lrtraj: $program $commit $of"
}

take_over() { # what the machine before this one had saved
  if [[ -e $workdir ]]; then return; fi
  rm -rf "$workdir.part"
  mkdir -p "$workdir.part"
  # `start` has just written exit_code: a listing that has it can be believed on what it lacks.
  insist gcloud storage ls "$bucket/" || give_up "cannot look into $bucket"
  grep -qxF "$bucket/exit_code" <<<"$said" ||
    give_up "$bucket/exit_code is not listed, though it was written. Received: $said"
  if grep -qxF "$bucket/workdir/" <<<"$said"; then
    insist gcloud storage rsync --recursive "$bucket/workdir" "$workdir.part" ||
      give_up "cannot take over $bucket/workdir"
  fi
  sync # its files, before the name that says they are whole
  mv "$workdir.part" "$workdir"
}

save() { # half-written files, which have names of their own, stay here
  local code=0
  if [[ -e $workdir/run.json ]]; then
    insist gcloud storage rsync --recursive --delete-unmatched-destination-objects \
      --exclude='(^|.*/)\.[^/]*\.tmp(/.*)?$' "$workdir" "$bucket/workdir" || code=1
  fi
  insist gcloud storage cp "$log" "$bucket/train.log" || true
  return "$code"
}

keep_saving() { # no longer than this program lives; a copy under way is finished
  local rest=""
  tries=1 # the next turn is another
  trap 'kill "$rest" 2>/dev/null; exit 0' TERM
  while true; do
    sleep "$seconds" &
    rest=$!
    wait "$rest" || true
    kill -0 "$$" 2>/dev/null || exit 0
    save || true
  done
}

finish() { # CODE: whatever the end was, tpu.py waits for its code
  local how=ended
  set +e
  trap '' TERM INT
  if [[ -n $training ]]; then kill "$training" 2>/dev/null; wait "$training"; fi
  if [[ -n $copying ]]; then kill "$copying" 2>/dev/null; wait "$copying"; fi
  # Without a code in the bucket tpu.py asks here, and takes the workdir from here.
  if save; then insist put "$bucket/exit_code" "$1"; else how=unsaved; fi
  echo "$how:$1" >"$home/exit_code.part"
  mv "$home/exit_code.part" "$home/exit_code"
}

train() { # BUCKET SECONDS FLAGS…
  local code=0
  bucket=$1 seconds=$2
  shift 2
  trap 'finish "$?"' EXIT
  trap 'exit "$resumable"' TERM INT
  take_over
  "$environment/bin/lrtraj-train" --workdir="$workdir" --strategy=tpu "$@" >>"$log" 2>&1 &
  training=$!
  # The VM is told of its end by SIGTERM, seconds before: enough for a checkpoint.
  trap 'kill -TERM "$training" 2>/dev/null || true' TERM INT
  keep_saving 9>&- & # without the lock
  copying=$!
  wait "$training" || code=$?
  while kill -0 "$training" 2>/dev/null; do # a signal ended `wait`, not the program
    code=0
    wait "$training" || code=$?
  done
  training=""
  exit "$code"
}

command=${1:?install, start, state or train}
shift
case $command in
  install | start | state | train)
    "$command" "$@"
    exit # bash reads on here, and this file may have been replaced meanwhile
    ;;
  *) echo "on_vm.sh: unknown command $command" >&2; exit 2 ;;
esac
