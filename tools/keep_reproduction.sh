#!/usr/bin/env bash
# Copies the measurements of a reproduction, without the states of its runs, and judges and draws them there.
#
#   tools/keep_reproduction.sh runs/reproduction results/reproduction_digits docs/reproduction_digits.md
set -euo pipefail
[[ $# -eq 3 && -d "$1/measured" ]] || {
  echo "usage: tools/keep_reproduction.sh WORKDIR DESTINATION PAGE.md   (WORKDIR: of lrtraj-reproduce)" >&2
  exit 2
}
source=$1 destination=$2 page=$3
mkdir -p "$destination"
cp "$source"/{config,run}.json "$destination/"
cp -r "$source"/{measured,probes} "$destination/"
lrtraj-reproduce --report_only --workdir="$destination" --page="$page"
