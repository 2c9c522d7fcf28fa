#!/usr/bin/env bash
# Writes an exported student as ONNX: bash launch/onnx.sh model.safetensors model.onnx [--preprocess=beside]
# jax2onnx needs an older Orbax than kd_jax does, which a .safetensors file takes none of: hence a virtual environment
# of its own, .venv-onnx (or $VENV), with what loads such a file, and onnxruntime, which checks the result.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "error: expected a file of \`kd_jax export\` and a new one: bash launch/onnx.sh model.safetensors model.onnx" >&2
    exit 2
fi
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${VENV:-$root/.venv-onnx}"
if [ ! -e "$venv/.installed" ]; then
    echo "installing into $venv (a minute or two, once)"
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        "jax2onnx>=0.17,<0.18" "onnxruntime>=1.24" "jax>=0.10,<0.11" "flax>=0.12,<0.13" "optax>=0.2.8,<0.3" \
        "numpy>=2,<3" "scipy>=1.13,<2" "absl-py>=2.1,<3" "ml_collections>=1.1,<2" "safetensors>=0.5,<1" "pillow>=11,<14"
    touch "$venv/.installed"
fi
source="$1" to="$2"
shift 2
PYTHONPATH="$root" exec "$venv/bin/python" -m kd_jax.export --workdir="$source" --to="$to" --format=onnx "$@"
