# shellcheck shell=bash disable=SC2086,SC2164
# Sourced by the other scripts: a virtual environment in .venv (or $VENV) with the package, the extras in
# $EXTRAS and the further packages in $PACKAGES.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than Python 3.11; set PYTHON to a newer one" >&2
    exit 2
fi
venv="${VENV:-.venv}"
# Installed already, from this very pyproject.toml? Then there is nothing to do.
stamp="$(cat pyproject.toml launch/install.sh | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')${EXTRAS:-} ${PACKAGES:-}"
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$stamp" ]; then
    echo "installing into $venv (a few minutes, once)"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".${EXTRAS:-}" ${PACKAGES:-}
    echo "$stamp" > "$venv/.installed"
fi
export PATH="$PWD/$venv/bin:$PATH"
