#!/usr/bin/env bash
# Copies the records of a run, without checkpoints and models, and draws its report and figures there.
#
#   tools/keep_records.sh runs/cifar10_resnet8_cpu results/cifar10_resnet8_cpu
#
# The folder may also be one of runs that differ in their seed, each in a subfolder.  In the copies,
# paths in the folder above it are relative.
set -euo pipefail
shopt -s nullglob
runs=()
for run in "${1-}"/run.json "${1-}"/*/run.json; do
  [[ ! -f "$run" ]] || runs+=("${run%/run.json}")
done
[[ $# -eq 2 ]] && ((${#runs[@]})) || {
  echo "usage: tools/keep_records.sh WORKDIR DESTINATION   (WORKDIR: the folder of a run, or of runs)" >&2
  exit 2
}
source=$1 destination=$2
above=$(dirname "$(realpath "$source")")
keep() { # FOLDER: of a run
  local folder=$1 target=$destination${1#"$source"} file
  mkdir -p "$target"
  for file in metrics.jsonl schedule.npz timing.jsonl; do
    [[ ! -f "$folder/$file" ]] || cp "$folder/$file" "$target/"
  done
  for file in config.json run.json; do
    sed "s#$above/##g" "$folder/$file" >"$target/$file"
  done
  if [[ -f "$folder/advice/advice.json" ]]; then # what lrtraj-average --advise found
    mkdir -p "$target/advice"
    cp "$folder"/advice/{advice.json,advice.npz,advice.svg,measured.jsonl} "$target/advice/"
  fi
  probes=("$folder"/probes/*.{npz,svg})
  if ((${#probes[@]})); then # what lrtraj-probe measured
    mkdir -p "$target/probes"
    cp "${probes[@]}" "$target/probes/"
  fi
}
for run in "${runs[@]}"; do
  keep "$run"
  for matched in "$run"/matched/*/run.json; do
    keep "${matched%/run.json}"
  done
done
lrtraj-report --workdir="$destination" --figures="$destination/figures"
