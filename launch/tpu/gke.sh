#!/usr/bin/env bash
# A job on TPU node pools of a GKE cluster that has JobSet installed; kubectl must point at the cluster.
#
#   gke.sh [--dry-run] start JOB          submit a job
#   gke.sh [--dry-run] logs               follow the first machine's log
#   gke.sh [--dry-run] stop               delete the job, which saves a checkpoint first; the same `start` continues it
#
# JOB is [COMMAND] ARGUMENTS: python -m launch.COMMAND ARGUMENTS, launch.train unless another one is named, as in
# `start evaluate --workdir=gs://...`.
#
# Variables: NAME (of the job), IMAGE (built from launch/tpu/Dockerfile; start), TOPOLOGY (of the node pool, as
# v6e:8x8; start); optional SLICES (1), CHIPS_PER_HOST (8 for a 2x4 on one host), SPOT=1, NAMESPACE (default).
# --dry-run prints the manifest and the commands, and calls nothing but Python.
source "$(dirname "${BASH_SOURCE[0]}")/action.sh"

variable NAME "of the job"
tool kubectl
kubectl=(kubectl --namespace="${NAMESPACE:-default}")

case $action in
  start)
    variable IMAGE "the container image with the code"
    variable TOPOLOGY "of the node pool, such as v6e:8x8"
    check_job gs:// "$@"
    render=(python3 "$(dirname "${BASH_SOURCE[0]}")/jobset.py" --name="$NAME" --image="$IMAGE" --topology="$TOPOLOGY"
      --slices="${SLICES:-1}")
    [[ -z ${CHIPS_PER_HOST:-} ]] || render+=(--chips_per_host="$CHIPS_PER_HOST")
    [[ -z ${SPOT:-} ]] || render+=(--spot)
    manifest=$("${render[@]}" -- "$@")
    if [[ -n $dry_run ]]; then
      printf '%s\n' "$manifest"
      echo "# $(quoted "${kubectl[@]}" apply --filename=-)"
    else
      printf '%s\n' "$manifest" | "${kubectl[@]}" apply --filename=-
    fi
    ;;
  logs)
    run "${kubectl[@]}" logs --follow \
      --selector="jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    ;;
  stop) run "${kubectl[@]}" delete jobset "$NAME" ;;
  *) fail "expected start, logs or stop, got '$action'; see --help" ;;
esac
