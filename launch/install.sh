# shellcheck shell=bash disable=SC2086,SC2164
# A virtual environment in .venv (or $VENV) with the package, the extras in $EXTRAS and the further packages in
# $PACKAGES: `bash launch/install.sh && . .venv/bin/activate`. The other scripts source it.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than Python 3.11; set PYTHON to a newer one" >&2
    exit 2
fi
venv="${VENV:-.venv}"

# What pip prints: on a terminal one line that is overwritten, elsewhere a line for every large file.
show() {
    local terminal=0 columns=80
    if [ -t 1 ]; then
        terminal=1
        columns="$( (stty size </dev/tty) 2>/dev/null | cut -d ' ' -f 2 || true)"
    fi
    awk -v terminal="$terminal" -v columns="${columns:-80}" '
        function say(text) {
            if (terminal + 0) printf "\r\033[K%s", substr(text, 1, columns - 1); else print text
            fflush()
        }
        /^ *Downloading .*\([0-9.]+ [kMG]B\)/ {
            sub(/^\(/, "", $(NF - 1)); size = $(NF - 1) + 0
            megabytes += $NF ~ /^kB/ ? size / 1000 : $NF ~ /^GB/ ? size * 1000 : size
            name = $2; sub(/-.*/, "", name); count++
            if (terminal + 0 || ($NF ~ /^MB/ && size >= 20)) say(sprintf("%d MB in %d packages: %s", megabytes, count, name))
        }
        /^Installing collected packages/ { say(sprintf("writing %d packages, which takes a minute", NF - 3)) }
        END { if (terminal + 0) printf "\r\033[K" }'
}

# Installed already, from this very pyproject.toml? Then there is nothing to do.
stamp="$(cat pyproject.toml launch/install.sh | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')${EXTRAS:-} ${PACKAGES:-}"
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$stamp" ]; then
    echo "installing into $venv: 0.7 GB to download, 3.2 GB on the disk${EXTRAS:+, and what $EXTRAS needs}; a few minutes, once"
    "$python" -m venv "$venv" || exit
    "$venv/bin/python" -m pip install --progress-bar off --disable-pip-version-check --editable ".${EXTRAS:-}" ${PACKAGES:-} | show
    [ "${PIPESTATUS[0]}" = 0 ] || exit 1
    echo "$stamp" > "$venv/.installed"
fi
export PATH="$PWD/$venv/bin:$PATH"
