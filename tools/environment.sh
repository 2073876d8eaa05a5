# Sourced by the other scripts: finds a Python and makes a virtual environment.
# Needs bash and Python 3.11 to 3.13; everything else is installed into the environment.
#
#   PYTHON           the interpreter to use (default: the first suitable one on the PATH)
#   TF_LRTRAJ_VENV   folder of the environment (default: one per script, in the repository);
#                    if another program has made the folder, the script ends without changes

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '==> %s\n' "$*"; }

fail() {
  printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

is_suitable() { # PYTHON: whether it runs and its version is one we support
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1
}

find_python() { # prints a suitable interpreter
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    is_suitable "$PYTHON" || fail "PYTHON=$PYTHON does not run, or is not Python 3.11 to 3.13."
    echo "$PYTHON"
    return
  fi
  # 3.11 first: the version most of the development was done with.
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if is_suitable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 to 3.13 on the PATH. Install one, or name it: PYTHON=/path/to/python $0"
}

marker=made_by_tools_environment # a file that identifies the folder; it is created first

is_ours() { # FOLDER: whether make_environment has made the folder, completely or in part
  # Older environments have no marker; they are identified by the installed setup.cfg.
  [[ -e "$1/$marker" ]] || grep -qsx "name = tf_lrtraj" "$1/installed.txt"
}

make_environment() { # FOLDER REQUIREMENT: creates it and installs, unless that was done before
  venv=$1
  local requirement=$2 stamp python began=$SECONDS
  stamp=$(cat "$root/setup.cfg" "$root/pyproject.toml" && printf '%s' "$root" "$requirement")
  if [[ -x "$venv/bin/python" ]] && is_suitable "$venv/bin/python" &&
    [[ "$(cat "$venv/installed.txt" 2>/dev/null)" == "$stamp" ]]; then
    say "environment $venv is up to date"
    return
  fi
  # Other content of the folder is not changed.
  if [[ -e "$venv" ]] && ! is_ours "$venv" && [[ ! -d "$venv" || -n "$(ls -A "$venv")" ]]; then
    fail "$venv exists and was not made by this script. Set TF_LRTRAJ_VENV to another folder" \
      "(it is made), or delete this one."
  fi
  python=$(find_python)
  if [[ "$(dirname "$(command -v "$python")")" -ef "$venv/bin" ]]; then
    python=$(readlink -f "$(command -v "$python")") # not the one that is about to go
  fi
  say "environment $venv with $("$python" --version) ($python)"
  # `venv --clear` would delete the marker too.  The marker must stay, so that the next call
  # recognises the folder even if this one is killed.
  mkdir -p "$venv" && touch "$venv/$marker"
  find "$venv/" -mindepth 1 -maxdepth 1 ! -name "$marker" -exec rm -rf {} +
  "$python" -m venv "$venv" || fail \
    "$python cannot make a virtual environment. On Debian or Ubuntu: apt install python3-venv"
  say "installing (TensorFlow is large: some minutes the first time)"
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
  # uv is several times faster than pip; pip is used if uv is not available.
  if "${pip[@]}" install uv >/dev/null 2>&1 &&
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" -e "$requirement"; then
    :
  else
    "${pip[@]}" install -e "$requirement" || fail "the installation failed (see above)"
  fi
  printf '%s' "$stamp" >"$venv/installed.txt"
  say "installed in $((SECONDS - began)) s"
}
