# What the scripts of this folder share; they source it.
# shellcheck shell=bash

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
  local argument text=''
  for argument in "$@"; do
    if [[ ! $argument =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then argument=${argument@Q}; fi
    text+=" $argument"
  done
  printf '%s' "${text# }"
}

# need NAME...: settings in the environment without which nothing can be done.
need() {
  local name
  for name in "$@"; do
    [[ ${!name:-} ]] || fail "$name is not set; the head of ${0##*/} says what it is"
  done
}
