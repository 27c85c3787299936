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
step "environment" use_environment dev
step "installation" install "dev"
export HF_HUB_OFFLINE=1
# One process per core and one more, as some tests wait, each with one thread; the tests of a file share what it sets
# up, and the longest come first.
workers=$(($(env -u OMP_NUM_THREADS nproc) + 1)) # nproc heeds OMP_NUM_THREADS
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
step "tests" "$PY" -m pytest -n "$((workers < 8 ? workers : 8))" --dist loadfile "${select[@]}" --durations=10 "$@"
