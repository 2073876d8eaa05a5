#!/usr/bin/env bash
# Makes a virtual environment, installs what the tests need, runs lint and tests.
#
#   tools/test.sh                     tests not marked long, and some that are; on JAX and torch
#                                     the modules that users import into their own `fit`
#   tools/test.sh --tensorflow-only   omits JAX and torch (also: TF_LRTRAJ_BACKENDS="")
#   tools/test.sh -m long             arguments go to pytest, which then runs once, on TensorFlow
#   tools/test.sh tests/theory -x
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# Modules that users import into their own `fit` must run on every backend of Keras.
across_backends=(tests/averaging tests/test_schedules.py tests/models
  tests/probes/test_{contract,line,gradients,probe_recorder}.py)
backends=${TF_LRTRAJ_BACKENDS-jax torch}
if [[ "${1:-}" == --tensorflow-only ]]; then
  backends=""
  shift
fi
(($#)) && backends=""

# The extra `torch` would let uv fetch PyTorch's build for GPUs, several GB with its libraries.
# pip also looks where its configuration points, which may be an index of CPU builds; elsewhere
# it installs the ordinary wheel.  Any PyTorch that Keras runs on will do.
TORCH=${TF_LRTRAJ_TORCH:-torch==2.13.0}

extras=test,lint,keras_cv
[[ " $backends " == *" jax "* ]] && extras=$extras,jax
make_environment "${TF_LRTRAJ_VENV:-$root/.venv-test}" "$root[$extras]"
if [[ " $backends " == *" torch "* ]] && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  say "installing $TORCH"
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet install "$TORCH" || fail \
    "$TORCH cannot be installed for $("$venv/bin/python" --version). Name another by" \
    "TF_LRTRAJ_TORCH, or leave the stage out: TF_LRTRAJ_BACKENDS=jax $0"
fi
paths=()
for argument in "$@"; do # paths are meant from where the script is called
  [[ -e "$argument" ]] && argument=$(realpath "$argument")
  paths+=("$argument")
done
cd "$root"
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2} # TensorFlow's start-up messages

say "ruff check"
"$venv/bin/ruff" check --quiet .
say "ruff format --check"
"$venv/bin/ruff" format --quiet --check .
say "mypy"
"$venv/bin/mypy"
# Tests with their own processes or backends, and some folders, run in parallel with the rest,
# because neither part alone uses two cores fully.
beside=(tests/bin tests/claims tests/data tests/faults tests/fuzz tests/probes tests/report tests/scale tests/theory)
# Where replicas evaluate on a loaded machine, TensorFlow itself can crash (docs/upstream_defects.md): those
# tests have a process of their own, which is started once more if a signal ended it.
alone() {
  local attempt code
  for attempt in 1 2; do
    code=0
    KERAS_BACKEND=tensorflow "$venv/bin/python" -m pytest --quiet "$@" || code=$?
    ((code > 128)) || break
    say "ended by signal $((code - 128)), attempt $attempt: pytest $*"
  done
  return "$code"
}
on_backend() {
  local paths=("${across_backends[@]}")
  say "pytest on $1"
  case $1 in # what needs no more than Keras itself is tried on the quicker of the two
    jax)
      paths=(tests/averaging/test_{averaged_optimizer,batch_norm_data,batch_norm_pass,borrowing,contract}.py
        tests/averaging/test_{interrupts,lives,saved_optimizer,sharded_averages,state,trainings,with_keras_parts}.py
        tests/study/test_study_without_tensorflow.py "${across_backends[@]:1}")
      ;;
    # A study trains several times faster on PyTorch; that it runs on TensorFlow, tests/bin shows.
    torch) paths=(tests/averaging tests/study tests/test_schedules.py tests/probes/test_probe_recorder.py) ;;
  esac
  KERAS_BACKEND=$1 "$venv/bin/python" -m pytest --quiet "${paths[@]}"
}
others() {
  local long=(-m pytest --quiet -m long)
  say "pytest, averages on replicas and on two workers"
  alone tests/averaging/test_strategies.py || return 1
  alone -m long tests/averaging/test_strategies.py || return 1
  say "pytest, runs of several workers"
  KERAS_BACKEND=tensorflow "$venv/bin/python" "${long[@]}" tests/scale/test_workers.py \
    -k two_workers_make || return 1
  say "pytest, killed and started again"
  KERAS_BACKEND=tensorflow "$venv/bin/python" "${long[@]}" \
    tests/averaging/test_{saved_optimizer,user_script,with_keras_parts}.py || return 1
  say "pytest, ${beside[*]}"
  KERAS_BACKEND=tensorflow "$venv/bin/python" -m pytest --quiet "${beside[@]}" || return 1
  if [[ " $backends " == *" jax "* ]]; then on_backend jax || return 1; fi
}
log=$(mktemp)
if (($#)); then true; else others; fi >"$log" 2>&1 &
pid=$!
trap 'kill "$pid" 2>/dev/null || true; cat "$log"; rm -f "$log"' EXIT

say "pytest"
(($#)) || paths=("${beside[@]/#/--ignore=}" --ignore=tests/averaging/test_strategies.py)
[[ " $backends " == *" torch "* ]] && paths+=(--ignore=tests/study)
KERAS_BACKEND=tensorflow "$venv/bin/python" -m pytest --quiet --durations=20 --durations-min=10 \
  "${paths[@]}"
if [[ " $backends " == *" torch "* ]]; then on_backend torch; fi
wait "$pid" || fail "tests that ran beside the others failed (see below)"
say "all passed in $SECONDS s"
