# shellcheck shell=bash
# Sourced first by the scripts that have actions, without arguments, so that theirs are at hand: reads the options and the
# action, and leaves the action's arguments.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

while [[ ${1:-} == -* ]]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=1 ;;
    *) fail "expected --help or --dry-run before the action, got $1" ;;
  esac
  shift
done
action=${1:-}
[[ -n $action ]] || fail "expected an action; see --help"
shift
