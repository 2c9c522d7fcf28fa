#!/usr/bin/env bash
# Installs what the tests need and runs them: style, types, tests. With --all as its first argument also the slow tests,
# in an environment of their own that has PyTorch; with --torch only those that need PyTorch. Other arguments go to
# pytest.
set -euo pipefail
EXTRAS="[test]"
if [ "${1:-}" = --all ]; then
    shift
    VENV=.venv-all
    EXTRAS="[test,all,aot,torch]"
    PACKAGES="torch==2.13.0"
    set -- -m "" "$@"
elif [ "${1:-}" = --torch ]; then
    shift
    VENV=.venv-torch
    EXTRAS="[test,torch]"
    PACKAGES="torch==2.13.0"
    . "$(dirname "$0")/install.sh"
    exec python -m pytest -n 0 -m torch "$@" tests/test_torch.py tests/test_import_teacher.py
fi
. "$(dirname "$0")/install.sh"
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
