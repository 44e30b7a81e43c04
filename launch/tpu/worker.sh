#!/usr/bin/env bash
# What runs on each machine of a job; the other scripts call it there.
#
#   worker.sh install         make venv/ beside the code and install the package with all that its commands need
#   worker.sh start JOB       run a job in the background, into job.log
#   worker.sh logs            follow job.log
#   worker.sh stop            SIGTERM: it saves a checkpoint; returns when the job has ended
#   worker.sh foreground JOB  for containers: wait for the job; exit code 75 if SIGTERM ended it, so that the
#                             scheduler starts it again
#
# JOB is [COMMAND] ARGUMENTS: python -m launch.COMMAND ARGUMENTS, launch.train unless another one is named, as in
# `start evaluate --workdir=gs://...`.
source "$(dirname "${BASH_SOURCE[0]}")/action.sh"
cd "$home"

python=venv/bin/python
[[ -x $python ]] || python=python3

running() { [[ -f job.pid ]] && kill -0 "$(<job.pid)" 2>/dev/null; }

case $action in
  install)
    # the machine's own Python is 3.10; uv brings a newer one
    run python3 -m pip install --user --quiet uv
    [[ -x venv/bin/python ]] || run python3 -m uv venv --quiet --python 3.11 venv
    run python3 -m uv pip install --quiet --python venv/bin/python -e ".[tpu,train,text]"
    ;;
  start)
    job "$@"
    ! running || fail "a job runs here already (process $(<job.pid)); stop it first"
    if [[ -n $dry_run ]]; then
      run "$python" "${job[@]}"
      exit
    fi
    # a session of its own: the end of the ssh connection is not the end of the job
    setsid "$python" "${job[@]}" >>job.log 2>&1 </dev/null &
    echo $! >job.pid
    echo "$(hostname): started process $(<job.pid)"
    ;;
  logs) run tail -n 100 -F job.log ;;
  stop)
    running || { echo "$(hostname): no job runs" && exit; }
    run kill -TERM "$(<job.pid)"
    while [[ -z $dry_run ]] && running; do sleep 1; done
    echo "$(hostname): stopped"
    ;;
  foreground)
    job "$@"
    if [[ -n $dry_run ]]; then run "$python" "${job[@]}"; else stoppable "$python" "${job[@]}"; fi
    ;;
  *) fail "expected install, start, logs, stop or foreground, got '$action'; see --help" ;;
esac
