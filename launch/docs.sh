#!/usr/bin/env bash
# Builds the documents into site/, in an environment of their own; a warning is an error. Arguments go to mkdocs.
set -euo pipefail
VENV=.venv-docs
EXTRAS="[docs]"
. "$(dirname "$0")/install.sh"
export NO_MKDOCS_2_WARNING=1  # a notice of the theme, not of these documents
exec python -m mkdocs build --strict "$@"
