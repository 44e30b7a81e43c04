#!/usr/bin/env bash
# A Cloud TPU slice as TPU VMs: made at once, or refused if there is none (queued.sh waits for one).
#
#   vm.sh [--dry-run] create             make the slice
#   vm.sh [--dry-run] install            copy the committed code to every machine of it, and install it there
#   vm.sh [--dry-run] start JOB          run a job on every machine, in the background
#   vm.sh [--dry-run] logs               follow the first machine's log
#   vm.sh [--dry-run] stop               save a checkpoint and end the job; the same `start` continues it
#   vm.sh [--dry-run] delete             delete the slice: what is not in a bucket is lost
#
# JOB is [COMMAND] ARGUMENTS: python -m launch.COMMAND ARGUMENTS, launch.train unless another one is named, as in
# `start evaluate --workdir=gs://...`.
#
# Variables: PROJECT, ZONE, NAME (of the slice), TYPE (as v6e-64; create); optional SPOT=1, VERSION (runtime version).
# --dry-run prints the commands and calls nothing.
source "$(dirname "${BASH_SOURCE[0]}")/action.sh"
source "$(dirname "${BASH_SOURCE[0]}")/machines.sh"

ssh_to() { run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2"; }
copy_to() { run gcloud compute tpus tpu-vm scp "$1" "$NAME:$2" "${where[@]}" --worker=all; }

variable NAME "of the slice"

case $action in
  create)
    slice
    run gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" "${slice[@]}" --version="$version"
    ;;
  delete) run gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}" --quiet ;;
  *) on_machines "$action" "$@" ;;
esac
