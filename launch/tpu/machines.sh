# shellcheck shell=bash
# Sourced by vm.sh and queued.sh: what is done in the same way on machines that are reached by `ssh_to` and `copy_to`.

code=asyncpatch_jax
variable PROJECT "the Google Cloud project"
variable ZONE "such as us-east5-b"
tool gcloud
# shellcheck disable=SC2034  # for the script that sources this, like those of `slice`
where=(--project="$PROJECT" --zone="$ZONE")

# slice: sets `version` and `slice`, what both ways of making one are told
slice() {
  variable TYPE "such as v6e-64"
  # shellcheck disable=SC2034
  version=${VERSION:-$(runtime "$TYPE")}
  slice=(--accelerator-type="$TYPE")
  [[ -z ${SPOT:-} ]] || slice+=(--spot)
}

# runtime TYPE: the system image for an accelerator type
runtime() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "expected TYPE v4-N, v5litepod-N, v5p-N or v6e-N, got $1; for another one set VERSION, its runtime version" ;;
  esac
}

# install: the committed code goes to every machine; changes that are not committed do not
install() {
  local archive
  archive=${TMPDIR:-/tmp}/$code.tar.gz
  tool git
  # shellcheck disable=SC2154  # shell.sh has it
  run git -C "$home" archive --format=tar.gz --output="$archive" HEAD
  copy_to "$archive" "$code.tar.gz"
  ssh_to all "mkdir -p $code && tar -xzf $code.tar.gz -C $code && bash $code/launch/tpu/worker.sh install"
}

# on_machines ACTION ARG...
on_machines() {
  local action=$1
  shift
  case $action in
    install) install ;;
    start)
      check_job gs:// "$@"
      ssh_to all "bash $code/launch/tpu/worker.sh start $(quoted "$@")"
      ;;
    logs) ssh_to 0 "bash $code/launch/tpu/worker.sh logs" ;;
    stop) ssh_to all "bash $code/launch/tpu/worker.sh stop" ;;
    *) fail "expected an action that --help lists, got '$action'" ;;
  esac
}
