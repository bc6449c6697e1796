#!/bin/bash
# A run on every host of a new Cloud TPU slice: tpu_vm.sh NAME ZONE TYPE [flags of run.py]. Needs gcloud and a project.
# The folder of the run should lie in a bucket that all hosts have mounted (gcsfuse). See docs/pages/devices.md.
set -euo pipefail
name=$1 zone=$2 type=$3
shift 3
repository=${TL_JAX_REPOSITORY:?the git address that the hosts clone tl_jax from}
version=${TPU_VERSION:-v2-alpha-tpuv5-lite}

gcloud compute tpus tpu-vm describe "$name" --zone="$zone" >/dev/null 2>&1 ||
  gcloud compute tpus tpu-vm create "$name" --zone="$zone" --accelerator-type="$type" --version="$version"

on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

on_all "test -d tl_jax || git clone -q $repository tl_jax
cd tl_jax && python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'"

# gcloud does not pass on with which status the hosts ended: 75 where they were told to stop and have saved. A slice that
# is gone must be made anew, by starting this script again.
flags=$(printf ' %q' "$@")
for _ in $(seq 20); do
  on_all "cd tl_jax && .venv/bin/python run.py --distributed$flags" && exit 0
  sleep 10
done
exit 1
