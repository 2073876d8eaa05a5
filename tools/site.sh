#!/usr/bin/env bash
# Makes a virtual environment and builds the documentation as a site, with its notebooks executed;
# every warning is an error.
#
#   tools/site.sh            into build/site; open build/site/index.html in a browser
#   tools/site.sh FOLDER     into FOLDER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

site=$(realpath -m "${1:-$root/build/site}")
make_environment "${TF_LRTRAJ_VENV:-$root/.venv-site}" "$root[docs]"
cd "$root"
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3} KERAS_BACKEND=tensorflow

say "building the site"
began=$SECONDS
# Notebooks run while their pages are read, so two processes use two cores.
"$venv/bin/python" -m sphinx -c docs -b html -j 2 -n -W --keep-going -q \
  -d "$(dirname "$site")/site_doctrees" . "$site" || fail "the site has errors (see above)"
# The pages have the paths of the repository, so the first one is docs/index.html.
printf '<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/">\n' \
  >"$site/index.html"
say "built in $((SECONDS - began)) s; open it in a browser: $site/docs/index.html"
