#!/usr/bin/env bash
# A job on GKE, through xpk: any TPU, one slice or several, on a cluster that xpk makes or that is there.
#
#   export NAME=coca CLUSTER=coca ZONE=us-central1-c TYPE=tpu7x-32
#   bash launch/xpk.sh [--dry-run] cluster             # makes the cluster; SPOT=1, or RESERVATION=...
#   bash launch/xpk.sh [--dry-run] storage             # STORAGE=coca SHARE=gs://my-bucket, mounted at /mnt/coca
#   bash launch/xpk.sh [--dry-run] run --config=configs/coca_base.py --workdir=/mnt/coca/base
#   bash launch/xpk.sh [--dry-run] status | logs | delete
#
# xpk builds the image from this folder on IMAGE (python:3.12) and restarts the job RESTARTS (20) times when its machines
# go; run_worker.sh inside restarts what crashes. Settings, in the environment: NAME, at most 28 letters; CLUSTER; ZONE;
# TYPE; SLICES (1); those above; those of run_worker.sh but COCA_PYTHON; PROJECT. `delete` ends the job and
# leaves the cluster.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
if [[ $dry ]]; then shift; fi
need CLUSTER ZONE
where=(--cluster="$CLUSTER" --zone="$ZONE")
if [[ ${PROJECT:-} ]]; then where+=(--project="$PROJECT"); fi

case ${1:-} in
  cluster)
    need TYPE
    kind=(--on-demand)
    if [[ ${SPOT:-} ]]; then kind=(--spot); fi
    if [[ ${RESERVATION:-} ]]; then kind=(--reservation="$RESERVATION"); fi
    run xpk cluster create "${where[@]}" --tpu-type="$TYPE" --num-slices="${SLICES:-1}" "${kind[@]}" \
      --enable-workload-identity --enable-gcsfuse-csi-driver ;;
  storage)
    need STORAGE SHARE
    run xpk storage attach "$STORAGE" "${where[@]}" --type=gcsfuse --bucket="${SHARE#gs://}" --mount-point=/mnt/coca \
      --readonly=false --size=1000 --auto-mount=false ;;
  run)
    need NAME TYPE
    shift
    mount=()
    if [[ ${STORAGE:-} ]]; then mount=(--storage="$STORAGE"); fi
    run xpk workload create "${where[@]}" --workload="$NAME" --tpu-type="$TYPE" --num-slices="${SLICES:-1}" \
      --base-docker-image="${IMAGE:-python:3.12}" --script-dir="$root" --max-restarts="${RESTARTS:-20}" "${mount[@]}" \
      --command="exec env $(settings COCA_EXTRA=tpu bash launch/run_worker.sh "$@")" ;;
  status) run xpk workload list "${where[@]}" ;;
  logs)
    need NAME
    run kubectl logs --follow --tail=100 --selector="jobset.sigs.k8s.io/jobset-name=$NAME" --prefix \
      --max-log-requests=100 ;;
  delete)
    need NAME
    run xpk workload delete "${where[@]}" --workload="$NAME" ;;
  *) fail "give one of cluster, storage, run, status, logs, delete" ;;
esac
