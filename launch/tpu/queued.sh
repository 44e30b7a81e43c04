#!/usr/bin/env bash
# Cloud TPU slices from the queue: one, or several that train as one job.
#
#   queued.sh [--dry-run] create             put a request for the slices into the queue
#   queued.sh [--dry-run] wait               return when they are there; fails when they never will be
#   queued.sh [--dry-run] install            copy the committed code to every machine, and install it there
#   queued.sh [--dry-run] start JOB          run a job on every machine, in the background
#   queued.sh [--dry-run] logs               follow the first machine's log
#   queued.sh [--dry-run] stop               save a checkpoint and end the job; the same `start` continues it
#   queued.sh [--dry-run] delete             delete the slices and the request
#
# JOB is [COMMAND] ARGUMENTS: python -m launch.COMMAND ARGUMENTS, launch.train unless another one is named, as in
# `start evaluate --workdir=gs://...`.
#
# Variables: PROJECT, ZONE, NAME (of the request), TYPE (as v6e-64; create); optional SLICES (1), SPOT=1, VERSION
# (runtime version), POLL (60: seconds between two looks at the queue).
# A preempted spot slice is gone: delete, create, wait, install and start again with the same arguments; the job
# continues from its last checkpoint. --dry-run prints the commands and calls nothing.
source "$(dirname "${BASH_SOURCE[0]}")/action.sh"
source "$(dirname "${BASH_SOURCE[0]}")/machines.sh"

queued=(gcloud compute tpus queued-resources)

# worker 0 of node 0 is the process that logs
ssh_to() { run "${queued[@]}" ssh "$NAME" "${where[@]}" --node="$1" --worker="$1" --command="$2"; }
copy_to() { run "${queued[@]}" scp "$1" "$NAME:$2" "${where[@]}" --node=all --worker=all; }

wait_for_slices() {
  local state
  while true; do
    if [[ -n $dry_run ]]; then
      run "${queued[@]}" describe "$NAME" "${where[@]}" --format="value(state.state)"
      return
    fi
    state=$("${queued[@]}" describe "$NAME" "${where[@]}" --format="value(state.state)")
    echo "$NAME: $state"
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        fail "expected $NAME to become ACTIVE, got $state; delete it and create it again"
        ;;
    esac
    sleep "${POLL:-60}"
  done
}

variable NAME "of the request"
slices=${SLICES:-1}
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "expected SLICES to be a number of at least 1, got $slices"

case $action in
  create)
    slice
    nodes=(--node-id="$NAME")
    [[ $slices == 1 ]] || nodes=(--node-count="$slices" --node-prefix="$NAME")
    run "${queued[@]}" create "$NAME" "${where[@]}" "${slice[@]}" --runtime-version="$version" "${nodes[@]}"
    ;;
  wait) wait_for_slices ;;
  delete) run "${queued[@]}" delete "$NAME" "${where[@]}" --force --quiet ;;
  *) on_machines "$action" "$@" ;;
esac
