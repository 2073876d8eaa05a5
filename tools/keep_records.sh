#!/usr/bin/env bash
# Copies the records of a run, without checkpoints and models, and draws its report and figures there.
#
#   tools/keep_records.sh runs/cifar10_resnet8_cpu results/cifar10_resnet8_cpu
set -euo pipefail
[[ $# -eq 2 && -f "$1/run.json" ]] || {
  echo "usage: tools/keep_records.sh WORKDIR DESTINATION   (WORKDIR: the folder of a run)" >&2
  exit 2
}
source=$1 destination=$2
for folder in "$source" "$source"/matched/*/; do
  [[ -f "$folder/run.json" ]] || continue
  target=$destination/${folder#"$source"}
  mkdir -p "$target"
  for file in config.json run.json metrics.jsonl schedule.npz timing.jsonl; do
    [[ ! -f "$folder/$file" ]] || cp "$folder/$file" "$target/"
  done
done
if [[ -f "$source/advice/advice.json" ]]; then # what lrtraj-average --advise found
  mkdir -p "$destination/advice"
  cp "$source"/advice/{advice.json,advice.npz,advice.svg,measured.jsonl} "$destination/advice/"
fi
if compgen -G "$source/probes/*.npz" >/dev/null; then # what lrtraj-probe measured
  mkdir -p "$destination/probes"
  cp "$source"/probes/*.npz "$source"/probes/*.svg "$destination/probes/"
fi
lrtraj-report --workdir="$destination" --figures="$destination/figures"
