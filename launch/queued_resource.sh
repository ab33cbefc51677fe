#!/usr/bin/env bash
# A job on Cloud TPU VMs (v4, v5e, v5p, v6e) that gets its machines from the queue and goes on by itself: the startup
# script holds all of it, so that a VM which is made again or boots again resumes. TPU7x and later: mig.sh or xpk.sh.
#
#   export NAME=coca ZONE=us-east5-b TYPE=v6e-64 BUCKET=gs://my-bucket
#   bash launch/queued_resource.sh [--dry-run] create --config=configs/coca_base.py --workdir=gs://my-bucket/base
#   bash launch/queued_resource.sh watch --config=configs/coca_base.py --workdir=gs://my-bucket/base
#   bash launch/queued_resource.sh [--dry-run] logs | status | delete
#
# `watch` runs on your machine until the run is done: it requests preempted machines again, and deletes them in the end.
# Settings, in the environment: NAME, ZONE, TYPE; BUCKET, for the code and the exit status; SLICES (1), joined over the
# data centre's network; SPOT=1 or RESERVED=1; VERSION (by TYPE); HOST, whose log is shown (0); those of
# run_worker.sh but COCA_PYTHON.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
if [[ $dry ]]; then shift; fi
need NAME ZONE
queue=(gcloud compute tpus queued-resources)
do=${1:-}
arguments=("${@:2}")

request() {
  need TYPE BUCKET
  local version kind=() nodes=(--node-id="$NAME")
  version=$(runtime_version)
  if ((${SLICES:-1} > 1)); then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
  if [[ ${SPOT:-} ]]; then kind=(--spot); fi
  if [[ ${RESERVED:-} ]]; then kind=(--reserved); fi
  scratch
  startup_script "${arguments[@]}" | put "$scratch/$NAME.startup.sh"
  run "${queue[@]}" create "$NAME" "${nodes[@]}" --zone="$ZONE" --accelerator-type="$TYPE" \
    --runtime-version="$version" "${kind[@]}" --scopes=https://www.googleapis.com/auth/cloud-platform \
    --metadata-from-file="startup-script=$scratch/$NAME.startup.sh"
}

state() {
  local found
  found=$("${queue[@]}" describe "$NAME" --zone="$ZONE" --format='value(state.state)' || echo UNKNOWN)
  case $found in
    SUSPENDING | SUSPENDED | FAILED) echo lost ;;
    *) echo "$found" ;;
  esac
}

remove() { run "${queue[@]}" delete "$NAME" --zone="$ZONE" --force --quiet; }

case $do in
  create)
    need TYPE BUCKET
    upload
    request ;;
  watch)
    need TYPE BUCKET
    [[ ! $dry ]] || fail "watch has no dry run: what it does depends on what happens"
    watch_job state request remove ;;
  logs)
    node=$NAME
    if ((${SLICES:-1} > 1)); then node=$NAME-0; fi
    run gcloud compute tpus tpu-vm ssh "$node" --zone="$ZONE" --worker="${HOST:-0}" \
      --command='sudo tail -n 100 -F /var/log/coca.log' ;;
  status) run "${queue[@]}" describe "$NAME" --zone="$ZONE" --format='value(state.state)' ;;
  delete) remove ;;
  *) fail "give one of create, watch, logs, status, delete" ;;
esac
