#!/usr/bin/env bash
# The batch script of slurm.sh, run in the repository's folder; its arguments are a job.
set -euo pipefail
# shellcheck source=shell.sh
source launch/tpu/shell.sh
code=0
job "$@"
stoppable srun "${PYTHON:-python3}" "${job[@]}" || code=$?
if [[ $code == 75 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
