#!/usr/bin/env bash
# Trains one run on all hosts of a Cloud TPU VM: bash launch/tpu_vm.sh NAME ZONE --config=rkd [FLAGS of kd_jax.main]
# It copies this checkout to every host, installs it with JAX for TPUs, and starts the same command on each; what the
# first says is shown. --workdir has to be a place that all hosts see. Needs gcloud, signed in.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "error: expected bash launch/tpu_vm.sh NAME ZONE FLAGS..., for example my-tpu us-central2-b --config=rkd" >&2
    exit 2
fi
name="$1" zone="$2"
shift 2
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
archive="$(mktemp)"
trap 'rm -f "$archive"' EXIT
git -C "$root" archive --format=tar.gz --prefix=kd_jax/ HEAD > "$archive"
gcloud compute tpus tpu-vm scp --zone="$zone" --worker=all "$archive" "$name:kd_jax.tar.gz"
# --distributed: JAX asks the TPU which processes there are.
gcloud compute tpus tpu-vm ssh --zone="$zone" --worker=all "$name" --command="
    set -e
    tar -xzf kd_jax.tar.gz && cd kd_jax
    EXTRAS='[tpu]' && . launch/install.sh
    exec python -m kd_jax.main --distributed $(printf '%q ' "$@")"
