# shellcheck shell=bash
# Sourced by vm.sh and queued.sh: what is done in the same way on machines that are reached by `ssh_to` and `copy_to`.

code=asyncpatch_jax

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
  local home archive
  home=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  archive=${TMPDIR:-/tmp}/$code.tar.gz
  tool git
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
      expect_workdir gs:// "$@"
      ssh_to all "bash $code/launch/tpu/worker.sh start $(quoted "$@")"
      ;;
    logs) ssh_to 0 "bash $code/launch/tpu/worker.sh logs" ;;
    stop) ssh_to all "bash $code/launch/tpu/worker.sh stop" ;;
    *) fail "expected an action that --help lists, got '$action'" ;;
  esac
}
