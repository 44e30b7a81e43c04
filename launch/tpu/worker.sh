#!/usr/bin/env bash
# What runs on each machine of a job; the other scripts call it there.
#
#   worker.sh install               make venv/ beside the code and install the package with [tpu,train]
#   worker.sh start ARGUMENTS       python -m launch.train ARGUMENTS in the background, into train.log
#   worker.sh logs                  follow train.log
#   worker.sh stop                  SIGTERM: it saves a checkpoint; returns when the job has ended
#   worker.sh foreground ARGUMENTS  for containers: wait for the job; exit code 75 if SIGTERM ended it, so that the
#                                   scheduler starts it again
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"
options "$@"
shift "$taken"
action=${1:-}
[[ $# -eq 0 ]] || shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=venv/bin/python
[[ -x $python ]] || python=python3

running() { [[ -f train.pid ]] && kill -0 "$(<train.pid)" 2>/dev/null; }

case $action in
  install)
    # the machine's own Python is 3.10; uv brings a newer one
    run python3 -m pip install --user --quiet uv
    [[ -x venv/bin/python ]] || run python3 -m uv venv --quiet --python 3.11 venv
    run python3 -m uv pip install --quiet --python venv/bin/python -e ".[tpu,train]"
    ;;
  start)
    ! running || fail "a job runs here already (process $(<train.pid)); stop it first"
    if [[ -n $dry_run ]]; then
      run "$python" -m launch.train "$@"
      exit
    fi
    # a session of its own: the end of the ssh connection is not the end of the job
    setsid "$python" -m launch.train "$@" >>train.log 2>&1 </dev/null &
    echo $! >train.pid
    echo "$(hostname): started process $(<train.pid)"
    ;;
  logs) run tail -n 100 -F train.log ;;
  stop)
    running || { echo "$(hostname): no job runs" && exit; }
    run kill -TERM "$(<train.pid)"
    while [[ -z $dry_run ]] && running; do sleep 1; done
    echo "$(hostname): stopped"
    ;;
  foreground)
    if [[ -n $dry_run ]]; then run "$python" -m launch.train "$@"; else stoppable "$python" -m launch.train "$@"; fi
    ;;
  *) fail "expected install, start, logs, stop or foreground, got '$action'; see --help" ;;
esac
