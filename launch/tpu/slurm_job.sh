#!/usr/bin/env bash
# The batch script of slurm.sh, run in the repository's folder; its arguments are those of launch.train.
set -euo pipefail
# shellcheck source=shell.sh
source launch/tpu/shell.sh
code=0
stoppable srun "${PYTHON:-python3}" -m launch.train "$@" || code=$?
if [[ $code == 75 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
