#!/usr/bin/env bash
# Run a jaxmlcl command as several processes on this machine:
#
#   launch/local.sh 2 train configs/quickstart.py --workdir runs/two
#
# DEVICES  CPU devices of each process (left to JAX if unset)
# PORT     of the coordinator (a free one if unset)
# JAXMLCL  the program (jaxmlcl, or that of .venv)
# DRY_RUN  1 prints the commands
#
# Ends when all have ended, with the exit code of the first that failed; it says how each of those
# ended. SIGTERM and SIGINT go to all of them.
set -uo pipefail
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ || $# -lt 2 ]]; then
  echo "usage: launch/local.sh PROCESSES COMMAND [ARGUMENT ...]" >&2
  exit 2
fi
count=$1
shift
if [[ -z ${JAXMLCL:-} ]]; then
  JAXMLCL=$(command -v jaxmlcl || echo "$(dirname "$0")/../.venv/bin/jaxmlcl")
fi
read -ra program <<<"$JAXMLCL"
port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
[[ -n ${DEVICES:-} ]] && export JAX_NUM_CPU_DEVICES=$DEVICES

pids=()
for ((index = 0; index < count; index++)); do
  command=("${program[@]}" "$@" --distributed.coordinator "127.0.0.1:$port"
    --distributed.num-processes "$count" --distributed.process-id "$index")
  if [[ ${DRY_RUN:-} == 1 ]]; then
    echo "${command[@]}"
    continue
  fi
  "${command[@]}" </dev/null &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
code=0
for index in "${!pids[@]}"; do
  pid=${pids[index]}
  wait "$pid"
  ended=$?
  # A signal to this script ends the wait early; the process is still there.
  while kill -0 "$pid" 2>/dev/null; do
    wait "$pid"
    ended=$?
  done
  [[ $ended == 0 ]] || echo "launch/local.sh: process $index ended with exit code $ended" >&2
  [[ $code == 0 ]] && code=$ended
done
exit "$code"
