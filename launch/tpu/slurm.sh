#!/usr/bin/env bash
# A job on the GPUs of a SLURM cluster, one process for each GPU; JAX finds the others by SLURM's variables.
#
#   slurm.sh [--dry-run] start JOB          submit a job
#   slurm.sh [--dry-run] logs NUMBER        follow the log of a job
#   slurm.sh [--dry-run] stop NUMBER        save a checkpoint and end the job; the same `start` continues it
#
# JOB is [COMMAND] ARGUMENTS: python -m launch.COMMAND ARGUMENTS, launch.train unless another one is named, as in
# `start evaluate --workdir=gs://...`.
#
# Variables: NODES, GPUS (of each node); optional NAME (asyncpatch), TIME (24:00:00), PARTITION, ACCOUNT, PYTHON
# (python3: with the package and its [cuda,train,text] installed, on every node).
# Five minutes before its time is up, a job saves a checkpoint and queues again; so it does when it is preempted.
# --dry-run prints the commands and calls nothing.
source "$(dirname "${BASH_SOURCE[0]}")/action.sh"
name=${NAME:-asyncpatch}

case $action in
  start)
    variable NODES "how many"
    variable GPUS "of each node"
    tool sbatch
    check_job "" "$@"
    # B: the signal goes to slurm_job.sh, which passes it on once and then queues the job again
    command=(sbatch --job-name="$name" --nodes="$NODES" --gpus-per-node="$GPUS" --ntasks-per-node="$GPUS"
      --time="${TIME:-24:00:00}" --signal=B:TERM@300 --requeue --open-mode=append --output="$name-%j.log"
      --chdir="$home" --export="ALL,PYTHON=${PYTHON:-python3}")
    [[ -z ${PARTITION:-} ]] || command+=(--partition="$PARTITION")
    [[ -z ${ACCOUNT:-} ]] || command+=(--account="$ACCOUNT")
    run "${command[@]}" "$home/launch/tpu/slurm_job.sh" "$@"
    ;;
  logs | stop)
    [[ -n ${1:-} ]] || fail "expected the number of the job, as in: slurm.sh $action 1234"
    if [[ $action == logs ]]; then
      run tail -n 100 -F "$home/$name-$1.log"
    else
      # to the processes and not to slurm_job.sh, which would queue the job again
      tool scancel
      run scancel --signal=TERM "$1"
    fi
    ;;
  *) fail "expected start, logs or stop, got '$action'; see --help" ;;
esac
