#!/usr/bin/env bash
# Run a jaxmlcl command on every host of a Cloud TPU slice that exists:
#
#   TPU=NAME ZONE=us-central2-b launch/tpu_vm.sh train configs/quickstart.py --workdir /mnt/RUN
#
# TPU      the slice's name
# ZONE     its zone
# PROJECT  the Google Cloud project (gcloud's default if unset)
# FOLDER   where the project lies on the hosts (jaxmlcl); this checkout is copied there
# SETUP    0 leaves copying and installing out
# DRY_RUN  1 prints the commands
#
# --workdir must be a folder that all hosts see, such as a Filestore share. The processes find each
# other by themselves. docs/scale.md says what happens when the slice is preempted, and how far
# checkpoints in a bucket are proven.
set -euo pipefail
if [[ -z ${TPU:-} || -z ${ZONE:-} || $# -lt 2 ]]; then
  echo "usage: TPU=NAME ZONE=ZONE launch/tpu_vm.sh COMMAND ARGUMENT ..." >&2
  exit 2
fi
folder=${FOLDER:-jaxmlcl}
place=(--zone "$ZONE" --worker all)
[[ -n ${PROJECT:-} ]] && place+=(--project "$PROJECT")

run() {
  if [[ ${DRY_RUN:-} == 1 ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

cd "$(dirname "$0")/.."
if [[ ${SETUP:-1} == 1 ]]; then
  run gcloud compute tpus tpu-vm scp --recurse . "$TPU:$folder" "${place[@]}"
  run gcloud compute tpus tpu-vm ssh "$TPU" "${place[@]}" --command \
    "cd $folder && python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu,cloud]'"
fi
words=$(printf '%q ' "$@")
run gcloud compute tpus tpu-vm ssh "$TPU" "${place[@]}" --command \
  "cd $folder && .venv/bin/jaxmlcl $words"
