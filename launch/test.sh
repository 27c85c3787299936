#!/usr/bin/env bash
# Installs what is missing and runs the tests: `bash launch/test.sh [--slow] [pytest arguments]`.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

select=(-m "not slow")
if [ "${1:-}" = --slow ]; then
    select=()
    shift
fi
step "environment" use_environment
step "installation" install "dev"
export HF_HUB_OFFLINE=1
step "tests" "$PY" -m pytest "${select[@]}" --durations=10 "$@"
