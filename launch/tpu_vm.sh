#!/usr/bin/env bash
# A slice of Cloud TPU VMs (v4, v5e, v5p, v6e), by hand. TPU7x and later: mig.sh or xpk.sh.
#
#   export NAME=coca ZONE=us-east5-b TYPE=v6e-16 COCA_MOUNT=10.0.0.2:/share
#   bash launch/tpu_vm.sh [--dry-run] create
#   bash launch/tpu_vm.sh [--dry-run] setup            # this commit to all hosts
#   bash launch/tpu_vm.sh [--dry-run] run --config=configs/coca_base.py --workdir=/mnt/coca/base
#   bash launch/tpu_vm.sh [--dry-run] logs | stop | status | delete
#
# `run` starts run_worker.sh on all hosts and returns; `stop` has them write a checkpoint and end, and `run` goes on from
# there. Settings, in the environment: NAME, ZONE, TYPE (of gcloud compute tpus accelerator-types list);
# VERSION (by TYPE); SPOT=1; HOST, whose log is shown (0); those of run_worker.sh but COCA_PYTHON; gcloud's own, such as
# CLOUDSDK_CORE_PROJECT.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
if [[ $dry ]]; then shift; fi
need NAME ZONE
tpu=(gcloud compute tpus tpu-vm)
on_all() { run "${tpu[@]}" ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

case ${1:-} in
  create)
    need TYPE
    version=$(runtime_version)
    spot=()
    if [[ ${SPOT:-} ]]; then spot=(--spot); fi
    run "${tpu[@]}" create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$version" "${spot[@]}" ;;
  setup)
    scratch
    tarball "$scratch/$NAME.tar.gz"
    run "${tpu[@]}" scp "$scratch/$NAME.tar.gz" "$NAME:coca.tar.gz" --zone="$ZONE" --worker=all
    on_all 'tar -xzf coca.tar.gz' ;;
  run)
    shift
    # The lock is free when the job before has ended.
    on_all "nohup env $(settings flock --nonblock coca.lock bash coca/launch/run_worker.sh "$@") \
>>coca.log 2>&1 </dev/null &" ;;
  stop) on_all "pkill -TERM -f '[c]oca/launch/run_worker.sh'" ;;
  logs) run "${tpu[@]}" ssh "$NAME" --zone="$ZONE" --worker="${HOST:-0}" --command='tail -n 100 -F coca.log' ;;
  status) run "${tpu[@]}" describe "$NAME" --zone="$ZONE" --format='value(state,health)' ;;
  delete) run "${tpu[@]}" delete "$NAME" --zone="$ZONE" --quiet ;;
  *) fail "give one of create, setup, run, logs, stop, status, delete" ;;
esac
