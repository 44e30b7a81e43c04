# shellcheck shell=bash
# Sourced by the scripts beside it: --help, --dry-run, and errors that say what is missing. Works with bash 3.2 (macOS).

dry_run=

fail() {
  echo "error: $*" >&2
  exit 1
}

# the comment at the top of the script
usage() { sed -n -e '/^[^#]/q' -e '/^$/q' -e '2,$s/^# \{0,1\}//p' "$0"; }

# options ARG...: sets dry_run; `$taken` is how many of the arguments were options
options() {
  taken=0
  while [[ ${1:-} == -* ]]; do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --dry-run) dry_run=1 ;;
      *) fail "expected --help or --dry-run before the action, got $1" ;;
    esac
    taken=$((taken + 1))
    shift
  done
}

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

# expect_workdir PREFIX ARG...: the arguments of launch.train must name a folder that all machines see
expect_workdir() {
  local prefix=$1 arg
  shift
  for arg in "$@"; do
    [[ $arg != --config.workdir="$prefix"?* ]] || return 0
  done
  fail "expected --config.workdir=$prefix... among the arguments of launch.train, got: $*"
}

# stoppable COMMAND...: pass SIGTERM on to it, and return 75 (try again) if it ended well because of that: a scheduler
# that sees 0 would take the job for done
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
  if [[ -n $asked && $code == 0 ]]; then code=75; fi
  return "$code"
}
