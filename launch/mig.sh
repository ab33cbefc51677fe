#!/usr/bin/env bash
# A job on a slice of TPU VMs of Compute Engine, as a managed instance group: TPU7x and later, also v5p and v6e. The
# startup script holds all of it, so that a VM which is made again or boots again resumes.
#
#   export CLOUDSDK_CORE_PROJECT=my-project NAME=coca ZONE=us-central1-c BUCKET=gs://my-bucket
#   export MACHINE=tpu7x-standard-4t TOPOLOGY=2x2x4 HOSTS=4
#   bash launch/mig.sh [--dry-run] create --config=configs/coca_base.py --workdir=gs://my-bucket/base
#   bash launch/mig.sh watch --config=configs/coca_base.py --workdir=gs://my-bucket/base
#   bash launch/mig.sh [--dry-run] logs | status | delete
#
# The group does not replace lost machines one by one, since they form one slice. `watch` runs on your machine until the
# run is done, makes the group again, and deletes it in the end. Settings, in the environment: CLOUDSDK_CORE_PROJECT;
# NAME; ZONE; MACHINE (also ct6e-standard-4t, ct5p-hightpu-4t); TOPOLOGY, of the slice in chips; HOSTS (chips / chips of
# a machine); BUCKET, for the code and the exit status; MODEL: STANDARD, SPOT, or FLEX_START with DURATION=7d;
# NETWORK_INTERFACE; HOST, the instance whose log is shown; those of run_worker.sh but COCA_PYTHON. It needs a gcloud of
# 2026.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
if [[ $dry ]]; then shift; fi
need NAME ZONE
region=${ZONE%-*}
project=${CLOUDSDK_CORE_PROJECT:-}
group=(gcloud compute instance-groups managed)
do=${1:-}
arguments=("${@:2}")

prepare() {
  need MACHINE TOPOLOGY HOSTS BUCKET CLOUDSDK_CORE_PROJECT
  local model=${MODEL:-STANDARD} family extra=()
  case $MACHINE in
    tpu7x-*) family=ubuntu-accel-2404-amd64-tpu-tpu7x ;;
    ct5p-* | ct6e-*) family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e ;;
    *) fail "MACHINE $MACHINE is not known here: tpu7x-, ct6e- or ct5p-" ;;
  esac
  case $model in
    SPOT) extra=(--instance-termination-action=DELETE) ;;
    FLEX_START) extra=(--instance-termination-action=DELETE --max-run-duration="${DURATION:-7d}") ;;
  esac
  if [[ ${NETWORK_INTERFACE:-} ]]; then extra+=(--network-interface="$NETWORK_INTERFACE"); fi
  upload
  startup_script "${arguments[@]}" | put "$scratch/$NAME.startup.sh"
  run gcloud compute resource-policies create workload-policy "$NAME" --region="$region" --type=HIGH_THROUGHPUT \
    --accelerator-topology="$TOPOLOGY" --accelerator-topology-mode=AUTO_CONNECT
  run gcloud compute instance-templates create "$NAME" --instance-template-region="$region" --machine-type="$MACHINE" \
    --image-project=ubuntu-os-accelerator-images --image-family="$family" --boot-disk-size=200GB \
    --maintenance-policy=TERMINATE --provisioning-model="$model" "${extra[@]}" \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    --metadata-from-file="startup-script=$scratch/$NAME.startup.sh"
}

request() {
  local path=projects/$project/regions/$region
  run "${group[@]}" create "$NAME" --zone="$ZONE" --size="$HOSTS" --template="$path/instanceTemplates/$NAME" \
    --workload-policy="$path/resourcePolicies/$NAME" --target-size-policy-mode=bulk \
    --default-action-on-vm-failure=do-nothing
}

state() {
  local statuses
  statuses=$("${group[@]}" list-instances "$NAME" --zone="$ZONE" --format='value(instanceStatus)' || echo UNKNOWN)
  if [[ $statuses =~ STOP|TERMINATED|SUSPEND ]] ||
    { [[ $statuses == *RUNNING* ]] && (($(wc -l <<<"$statuses") < HOSTS)); }; then
    echo lost
  else
    echo "${statuses//$'\n'/ }"
  fi
}

remove_group() { run "${group[@]}" delete "$NAME" --zone="$ZONE" --quiet; }

remove() {
  remove_group || true  # `watch` has deleted it already, or somebody else
  run gcloud compute instance-templates delete "$NAME" --region="$region" --quiet
  run gcloud compute resource-policies delete "$NAME" --region="$region" --quiet
}

case $do in
  create)
    prepare
    request ;;
  watch)
    need HOSTS BUCKET CLOUDSDK_CORE_PROJECT
    [[ ! $dry ]] || fail "watch has no dry run: what it does depends on what happens"
    watch_job state request remove_group
    remove ;;
  logs)
    need HOST
    run gcloud compute ssh "$HOST" --zone="$ZONE" --command='sudo tail -n 100 -F /var/log/coca.log' ;;
  status) run "${group[@]}" list-instances "$NAME" --zone="$ZONE" ;;
  delete) remove ;;
  *) fail "give one of create, watch, logs, status, delete" ;;
esac
