# What the scripts of this folder share; they source it.
# shellcheck shell=bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# With --dry-run as the first argument a script prints its commands, ready to be pasted, and runs none.
dry=
if [[ ${1:-} == --dry-run ]]; then dry=1; fi

fail() {
  echo "error: $*" >&2
  exit 1
}

run() {
  if [[ $dry ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# Its arguments as one text that a shell reads back as the same arguments.
quoted() {
  local argument text='' shown="\"\$scratch\""
  for argument in "$@"; do
    if [[ ! $argument =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then argument=${argument@Q}; fi
    text+=" $argument"
  done
  text=${text# }
  printf '%s' "${text//@scratch@/$shown}"
}

# A folder of this call alone, $scratch: a name in /tmp that others can guess they can also take.
scratch() {
  if [[ ${scratch:-} ]]; then return; fi
  if [[ $dry ]]; then
    echo "scratch=\$(mktemp -d)"
    scratch=@scratch@
  else
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
  fi
}

# need NAME...: settings in the environment without which nothing can be done.
need() {
  local name
  for name in "$@"; do
    if [[ ! ${!name:-} ]]; then fail "$name is not set; the head of ${0##*/} says what it is"; fi
  done
}

# The commit that is checked out, as a tarball that unpacks as coca/; what is not committed is not in it.
tarball() {
  if [[ ! $dry && $(git -C "$root" status --porcelain --untracked-files=no) ]]; then
    echo "warning: changes that are not committed are not taken along" >&2
  fi
  run git -C "$root" archive --format=tar.gz --prefix=coca/ --output="$1" HEAD
}

# put FILE: standard input becomes that file.
put() {
  if [[ $dry ]]; then
    echo "cat >$(quoted "$1") <<'END'"
    cat
    echo "END"
  else
    cat >"$1"
  fi
}

# The settings of run_worker.sh that are set here, as NAME=value words for the host, and its arguments behind them.
settings() {
  local name words=()
  for name in COCA_MODULE COCA_MOUNT COCA_VENV COCA_EXTRA COCA_RESTARTS COCA_BACKOFF; do
    if [[ ${!name:-} ]]; then words+=("$name=${!name}"); fi
  done
  words+=("$@")
  quoted "${words[@]}"
}

# The software of Cloud TPU VMs of type $TYPE, unless VERSION says it.
runtime_version() {
  case $TYPE in
    v6e-*) echo "${VERSION:-v2-alpha-tpuv6e}" ;;
    v5p-*) echo "${VERSION:-v2-alpha-tpuv5}" ;;
    v5litepod-*) echo "${VERSION:-v2-alpha-tpuv5-lite}" ;;
    v[234]-*) echo "${VERSION:-"tpu-ubuntu2204-base"}" ;;
    *) need VERSION && echo "$VERSION" ;;
  esac
}

# shellcheck disable=SC2153  # NAME, BUCKET and TYPE are settings
# startup_script ARGUMENTS: what a VM runs at every boot, as root: it takes the code from $BUCKET, runs the job, and
# leaves its exit status in $BUCKET, for `watch`.
startup_script() {
  cat <<END
#!/bin/bash
export HOME=/root
cd /root
until gcloud storage cp $(quoted "$BUCKET/coca/$NAME.tar.gz") coca.tar.gz; do sleep 15; done
tar -xzf coca.tar.gz
env $(settings bash coca/launch/run_worker.sh "$@") >>/var/log/coca.log 2>&1
status=\$?
case \$status in
  0) ended=done ;;
  143) exit ;;
  *) ended=failed ;;
esac
echo "\$(hostname): status \$status, see /var/log/coca.log" | gcloud storage cp - $(quoted "$BUCKET/coca/$NAME").\$ended
END
}

# The code and no trace of an earlier job of this name into $BUCKET.
upload() {
  scratch
  tarball "$scratch/$NAME.tar.gz"
  run gcloud storage cp "$scratch/$NAME.tar.gz" "$BUCKET/coca/$NAME.tar.gz"
  run gcloud storage rm "$BUCKET/coca/$NAME.done" "$BUCKET/coca/$NAME.failed" || true  # there may be none
}

# watch_job STATE CREATE DELETE, all functions: waits for the end of the job, makes its machines again when they are
# gone (STATE prints `lost`), and deletes them in the end.
watch_job() {
  local state
  while true; do
    if gcloud storage cat "$BUCKET/coca/$NAME.done" 2>/dev/null; then
      echo "$NAME: the run is done"
      "$3"
      return
    fi
    if gcloud storage cat "$BUCKET/coca/$NAME.failed" 2>/dev/null; then
      fail "$NAME has stopped and needs you; its machines are still there, and cost money: \`logs\`, then \`delete\`"
    fi
    state=$("$1")
    echo "$(date +%T) $NAME: $state"
    if [[ $state == lost ]]; then
      "$3"
      "$2"
    fi
    sleep "${WATCH_SECONDS:-60}"
  done
}
