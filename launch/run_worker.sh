#!/usr/bin/env bash
# Trains on this host until the run is done: environment, installation, and a restart after a crash or a preemption.
# Every script here starts it once on every host, with the same arguments, which are those of coca.train:
#
#   bash launch/run_worker.sh [--dry-run] --config=configs/coca_base.py --workdir=/mnt/coca/base [...]
#
# The workdir is a folder that all hosts see, or gs://BUCKET/RUN. A host's output goes to WORKDIR/logs/HOST.log too,
# with a bucket to ~/coca-logs/BUCKET/RUN/HOST.log on the host, which needs gcloud then. It runs in the checkout: paths
# without a / in front are meant from there. Settings, in the environment:
#
#   COCA_MODULE     coca.train; or coca.evaluate
#   COCA_MOUNT      mounted at /mnt/coca: HOST:/SHARE over NFS, or gs://BUCKET through gcsfuse; empty: nothing
#   COCA_PYTHON     a Python that has coca installed; empty: one is set up in COCA_VENV
#   COCA_VENV       ~/coca-venv
#   COCA_EXTRA      tpu, cuda or cpu; empty: what this host has
#   COCA_RESTARTS   8 in a row without a new checkpoint, then it gives up
#   COCA_BACKOFF    10 seconds before the first restart, then twice as long up to 300
#
# Ends with 0 when the run is done, 1 after a mistake that no restart mends, 143 after a SIGTERM (the checkpoint is
# written; the same command goes on), else with the status of the last try.
set -euo pipefail
export HOME=${HOME:-/root}  # a startup script has none
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
if [[ $dry ]]; then shift; fi

workdir='' process=${SLURM_PROCID:-} previous=''
for argument in "$@"; do
  case $previous$argument in
    --workdir=* | --workdir\ *) workdir=${argument#--workdir=} ;;
    --process_id=* | --process_id\ *) process=${argument#--process_id=} ;;
  esac
  previous=
  if [[ $argument == --workdir || $argument == --process_id ]]; then previous="$argument "; fi
done
[[ $workdir ]] || fail "give --workdir=FOLDER: one that all hosts see, or gs://BUCKET/RUN"
if [[ $workdir == *://* && $workdir != gs://* ]]; then
  fail "--workdir=$workdir: hosts tell each other of the end in a folder or gs://; for s3:// start coca.train itself"
fi

# --- What the host has ---
extra=${COCA_EXTRA:-}
if [[ ! $extra ]]; then
  extra=cpu
  if compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
    extra=tpu
  elif command -v nvidia-smi >/dev/null; then
    extra=cuda
  fi
fi

# --- Shared folder ---
if [[ ${COCA_MOUNT:-} ]] && { [[ $dry ]] || ! mountpoint -q /mnt/coca; }; then
  run sudo mkdir -p /mnt/coca
  case $COCA_MOUNT in
    gs://*)
      run sudo chown "$(id -u):$(id -g)" /mnt/coca
      run gcsfuse --implicit-dirs "${COCA_MOUNT#gs://}" /mnt/coca ;;
    *)
      if [[ $dry ]] || ! command -v mount.nfs >/dev/null; then run sudo apt-get install -y nfs-common; fi
      run sudo mount -t nfs -o hard,timeo=600 "$COCA_MOUNT" /mnt/coca ;;
  esac
fi

# --- Python ---
install() {
  if [[ ! -x $venv/bin/python ]]; then
    if python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      run python3 -m venv "$venv"
    else  # as on the images of TPU VMs, which have 3.10
      command -v pip3 >/dev/null || run sudo apt-get install -y python3-pip
      run pip3 install --quiet --user uv
      run python3 -m uv venv --quiet --seed --python 3.12 "$venv"
    fi
  fi
  local extras=
  if [[ $extra != cpu ]]; then extras="[$extra]"; fi
  if [[ $workdir == gs://* ]]; then extras="[${extra/cpu/gs},gs]"; fi
  run "$venv/bin/pip" install --quiet --disable-pip-version-check -e "$root$extras"
}

python=${COCA_PYTHON:-}
if [[ ! $python ]]; then
  venv=${COCA_VENV:-$HOME/coca-venv}
  python=$venv/bin/python
  if [[ $dry ]]; then
    install
  else
    for try in 1 2 3 4; do  # one process of a host at a time; a network may come late after a boot
      if flock "$venv.lock" bash -c "$(declare -p venv extra root dry workdir); $(declare -f install run); set -e; install"; then
        break
      fi
      if ((try == 4)); then fail "coca could not be installed in $venv"; fi
      sleep $((try * 15))
    done
  fi
fi

# --- Environment ---
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$workdir/xla_cache}  # a restart compiles nothing
export PYTHONUNBUFFERED=1

command=("$python" -m "${COCA_MODULE:-coca.train}" "$@")
if [[ $dry ]]; then
  echo "export JAX_COMPILATION_CACHE_DIR=$(quoted "$JAX_COMPILATION_CACHE_DIR") PYTHONUNBUFFERED=1"
  quoted cd "$root"
  echo
  quoted "${command[@]}"
  echo
  exit
fi

# --- Run, again and again ---
cd "$root"
logs=$workdir/logs
if [[ $workdir == gs://* ]]; then
  command -v gcloud >/dev/null || fail "--workdir=$workdir needs gcloud here: by it hosts tell each other of the end"
  logs=$HOME/coca-logs/${workdir#gs://}
fi
host=$HOSTNAME${process:+-$process}
mkdir -p "$logs"
touch "$logs/$host.started"  # markers of other hosts count if they are newer
started=$(date +%s)

say() { echo "[$host $(date +%T)] $*" | tee -a "$logs/$host.log" 2>/dev/null || true; }
# The last checkpoint; a marker, `done` or `stopped`, for the other hosts; whether another host, $other, has left one.
if [[ $workdir == gs://* ]]; then
  latest() {
    { gcloud storage ls "$workdir/checkpoints/*/commit_success.txt" 2>/dev/null || true; } |
      sed -nE 's|.*/([0-9]+)/commit_success.txt|\1|p' | sort -n | tail -n 1
  }
  mark() { echo "$(date +%s) $host" | gcloud storage cp - "$workdir/logs/$1" 2>/dev/null || true; }
  marked() {
    other=$(gcloud storage cat "$workdir/logs/$1" 2>/dev/null) && ((${other%% *} >= started)) && other=${other#* }
  }
else
  latest() { { ls "$workdir/checkpoints" 2>/dev/null || true; } | { grep -x '[0-9]*' || true; } | sort -n | tail -n 1; }
  mark() { echo "$host" >"$logs/$1" || true; }
  marked() { [[ $logs/$1 -nt $logs/$host.started ]] && other=$(<"$logs/$1"); }
fi

asked='' child='' other=''
trap 'asked=1; if [[ $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi' TERM INT
tries=0 pause=${COCA_BACKOFF:-10}
while true; do
  before=$(latest)
  "${command[@]}" > >(trap '' TERM INT; exec tee -a "$logs/$host.log" 2>/dev/null) 2>&1 &
  child=$!
  status=0
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do  # a signal ends `wait` before the child has ended
    status=0
    wait "$child" || status=$?
  done
  child=

  case $status in
    0)
      mark 'done'
      exit 0 ;;
    1 | 2 | 126 | 127)
      say "ended with status $status: a mistake, which a restart does not mend; see above"
      mark stopped
      exit 1 ;;
  esac
  if [[ $asked ]]; then
    say "stopped as asked, with status $status"
    exit "$status"
  fi
  if marked 'done'; then
    say "ended with status $status when $other had finished: the run is done"
    exit 0
  fi
  if marked stopped; then  # by nobody where the disk is full
    say "ended with status $status after ${other:-another host} had stopped; its log says why"
    exit 1
  fi
  after=$(latest)
  # 73: another run is in the workdir. It may be the last sign of one that is gone; its checkpoints are none of ours, and
  # it is not to be stopped.
  if [[ $status != 73 && $after != "$before" ]]; then tries=0 pause=${COCA_BACKOFF:-10}; fi
  if ((++tries > ${COCA_RESTARTS:-8})); then
    if [[ $status == 73 ]]; then
      say "gives up: another run was in the workdir at each of $tries tries; see above"
      exit "$status"
    fi
    say "ended with status $status, and $((tries - 1)) restarts have brought no new checkpoint (last: ${after:-none});" \
      "gives up"
    mark stopped
    exit "$status"
  fi
  say "ended with status $status at checkpoint ${after:-none}; restart $tries without a new one in $pause s"
  sleep "$pause" &
  wait $! || true
  if [[ $asked ]]; then exit 143; fi
  pause=$((pause * 2 > 300 ? 300 : pause * 2))
done
