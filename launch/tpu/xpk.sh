#!/usr/bin/env bash
# A job on a GKE cluster that xpk made (pip install xpk).
#
#   xpk.sh [--dry-run] start JOB          submit a job
#   xpk.sh [--dry-run] stop               delete the job; the same `start` continues it
#
# JOB is [COMMAND] ARGUMENTS: python -m launch.COMMAND ARGUMENTS, launch.train unless another one is named, as in
# `start evaluate --workdir=gs://...`.
#
# Variables: PROJECT, ZONE, CLUSTER, NAME (of the job), IMAGE (built from launch/tpu/Dockerfile; start), TYPE (as
# v6e-64; start); optional SLICES (1). --dry-run prints the commands and calls nothing.
source "$(dirname "${BASH_SOURCE[0]}")/action.sh"

variable PROJECT "the Google Cloud project"
variable ZONE "such as us-east5-b"
variable CLUSTER "the GKE cluster"
variable NAME "of the job"
tool xpk
where=(--project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" --workload="$NAME")

case $action in
  start)
    variable IMAGE "the container image with the code"
    variable TYPE "such as v6e-64"
    check_job gs:// "$@"
    # every preemption is a restart
    run xpk workload create "${where[@]}" --tpu-type="$TYPE" --num-slices="${SLICES:-1}" --docker-image="$IMAGE" \
      --max-restarts=1000 --command="bash launch/tpu/worker.sh foreground $(quoted "$@")"
    ;;
  stop) run xpk workload delete "${where[@]}" ;;
  *) fail "expected start or stop, got '$action'; see --help" ;;
esac
