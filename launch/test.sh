#!/usr/bin/env bash
# Installs what the tests need and runs them all: style, types, tests. Arguments go to pytest.
set -euo pipefail
EXTRAS="[test]"
. "$(dirname "$0")/install.sh"
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
