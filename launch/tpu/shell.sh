# shellcheck shell=bash
# Sourced by the scripts beside it: what they all do. Works with bash 3.2 (macOS).

dry_run=
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd) # of the code

fail() {
  echo "error: $*" >&2
  exit 1
}

# the comment at the top of the script
usage() { sed -n -e '/^[^#]/q' -e '/^$/q' -e '2,$s/^# \{0,1\}//p' "$0"; }

# variable NAME MEANING: it must be set
variable() { [[ -n ${!1:-} ]] || fail "expected the variable $1 ($2), got none; see --help"; }

# tool NAME: it must be on the PATH, except in a dry run, which calls nothing
tool() { [[ -n $dry_run ]] || command -v "$1" >/dev/null || fail "expected $1 on the PATH, found none"; }

# quoted WORD...: the words as bash reads them back, so that spaces and quotes survive ssh
quoted() {
  local text
  text=$(printf '%q ' "$@")
  printf '%s' "${text% }"
}

# run COMMAND...: run it, or in a dry run print it ready to be pasted
run() {
  if [[ -n $dry_run ]]; then
    quoted "$@" && echo
  else
    "$@"
  fi
}

# job [COMMAND] ARG...: sets `job` to what Python is to run: -m launch.COMMAND ARG..., launch.train without a name
job() {
  local module=train
  if [[ $# -gt 0 && $1 != -* ]]; then
    module=$1
    shift
  fi
  [[ -f $home/launch/${module//.//}.py ]] || fail "expected a command of launch/ (python -m launch lists them), got $module"
  # shellcheck disable=SC2034  # for the script that sources this
  job=(-m "launch.$module" "$@")
}

# check_job PREFIX [COMMAND] ARG...: there must be such a command, and it must write to a folder that all machines see
check_job() {
  local prefix=$1 arg
  shift
  job "$@"
  for arg in "$@"; do
    case $arg in
      --config.workdir="$prefix"?* | --workdir="$prefix"?* | --out="$prefix"?*) return 0 ;;
      --config.data.latents="$prefix"?*) [[ ${job[1]} != launch.encode ]] || return 0 ;;
    esac
  done
  fail "expected --config.workdir=$prefix..., --workdir=$prefix... or --out=$prefix... among the arguments, got: $*"
}

# stoppable COMMAND...: pass SIGTERM on to it, and return 75 (try again) if it ended because of that, well (0) or by the
# signal (143): a scheduler that sees 0 would take the job for done
stoppable() {
  local asked='' child code
  "$@" &
  child=$!
  trap 'asked=1; kill -TERM "$child" 2>/dev/null || true' TERM
  while true; do
    code=0
    wait "$child" || code=$?
    # a signal ends `wait` before the command ends
    kill -0 "$child" 2>/dev/null || break
  done
  trap - TERM
  if [[ -n $asked && ($code == 0 || $code == 143) ]]; then code=75; fi
  return "$code"
}
