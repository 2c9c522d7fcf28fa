#!/usr/bin/env bash
# From a machine with Python to a distilled network: installs, trains a teacher on handwritten digits, distills it,
# trains the same student alone, and prints what each reached and cost. Arguments go to kd_jax.quickstart.
set -euo pipefail
. "$(dirname "$0")/install.sh"
exec python -m kd_jax.quickstart "$@"
