# Shared by the scripts of this folder: `source launch/common.sh` from the repository's root.
# Makes or finds the Python environment, installs into it once, and times what it does.

# Import names of what Sparlow needs to train, evaluate and report.
NEEDED=(torch deepspeed sentencepiece datasets tensorboard safetensors pydantic rich matplotlib numpy)

# What the tests and checks need besides.
NEEDED_DEV=(pytest xdist psutil transformers hypothesis ruff mypy)

# Threads that wait for others sleep soon (pretrain/machine/threads.py), unless you have said how they should wait.
[ -n "${GOMP_SPINCOUNT+set}${OMP_WAIT_POLICY+set}" ] || export GOMP_SPINCOUNT=2000

# Not empty where PY is a Python of the system's, which is used as it is.
BORROWED=

fail() { printf '\n%s\n' "$1" >&2; exit "${2:-1}"; }

# whole NAME LEAST …: refuses a variable that is set to anything but a whole number of at least that.
whole() {
    while [ $# -gt 0 ]; do
        [[ ${!1:-$2} =~ ^[0-9]{1,9}$ && $((10#${!1:-$2})) -ge $2 ]] || fail "$1=${!1} is no whole number of at least $2." 2
        shift 2
    done
}

# step "what" command …: says what it does and how long it took.
step() {
    local what=$1 start=$SECONDS
    shift
    printf '\n== %s\n' "$what"
    "$@" || return $?
    printf '== %s: %d s\n' "$what" $((SECONDS - start))
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    command -v python3 >/dev/null 2>&1 || fail "No Python found: install Python 3.11 or newer, or name one with PYTHON=/path/to/python."
    fail "$(python3 --version) is too old: Sparlow needs Python 3.11 or newer; name one with PYTHON=/path/to/python."
}

# The active virtual or conda environment, else .venv where there is one. Sets PY, empty when there is neither.
find_environment() {
    local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    PY=
    if [ -n "$active" ]; then
        PY=$active/bin/python
        [ -x "$PY" ] || fail "The active environment $active holds no Python: deactivate it and run this again."
        "$PY" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            fail "The active environment's $("$PY" --version) is too old: Sparlow needs Python 3.11 or newer; deactivate it."
        echo "environment: $active (active)"
    elif [ -x .venv/bin/python ]; then
        PY=$PWD/.venv/bin/python
        echo "environment: .venv ($("$PY" --version))"
    fi
}

# borrow NAME…: sets PY to a Python on PATH, new enough, that finds all of NEEDED and these. Nothing is ever installed into it.
borrow() {
    local candidate absent
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        [ -n "$candidate" ] && PY=$(command -v "$candidate") || continue
        "$PY" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        absent=$(missing "${NEEDED[@]}" "$@" 2>/dev/null) && [ -z "$absent" ] || continue
        BORROWED=yes
        echo "environment: $PY, which has what is needed"
        return
    done
    PY=
}

# use_environment "extras": find_environment, else a Python on PATH that has everything, else a new .venv.
use_environment() {
    find_environment
    [ -z "$PY" ] || return 0
    if [ "${1:-}" = dev ]; then borrow "${NEEDED_DEV[@]}"; else borrow; fi
    [ -z "$PY" ] || return 0
    local base free
    base=$(find_python) || exit 1
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free" -ge 3 ] || fail "Only $free GiB of disk are free here and the environment needs 3 GiB (8 GiB with CUDA): free some space."
    "$base" -m venv .venv >/dev/null 2>&1 || {
        rm -rf .venv
        fail "$base cannot make a virtual environment: install its venv module (Debian and Ubuntu: apt install python3-venv)."
    }
    find_environment
}

# missing NAME…: those of the import names that PY does not find; a folder left without its code counts as missing.
missing() {
    "$PY" - "$@" <<'EOF'
import sys
from importlib.util import find_spec

print(*(name for name in sys.argv[1:] if getattr(find_spec(name), "origin", None) is None))
EOF
}

# install "extras": torch first (DeepSpeed's build looks for it), then Sparlow, editable. Done once per set of requirements.
install() {
    local extras=$1 names=("${NEEDED[@]}") stamp prefix log absent
    if [ -n "$BORROWED" ]; then
        echo "already there"
        return
    fi
    [ "$extras" != dev ] || names+=("${NEEDED_DEV[@]}")
    prefix=$("$PY" -c 'import sys; print(sys.prefix)')
    stamp=$prefix/.sparlow-$extras-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)-$(pwd | cksum | cut -d' ' -f1)
    if [ -e "$stamp" ] && [ -z "$(missing "${names[@]}")" ]; then
        echo "already installed"
        return
    fi
    log=$(mktemp)
    if ! { pip_install "torch" && pip_install -e ".${extras:+[$extras]}"; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        grep -qi 'no space left' "$log" && fail "The disk is full: free some space (8 GiB with CUDA, 3 GiB without) and run this again."
        grep -qiE 'connection|resolve|network|timed out|no matching distribution' "$log" &&
            fail "The packages could not be downloaded: check the network (or pip's proxy and index settings) and run this again."
        fail "The installation failed; the last lines of pip's output are above."
    fi
    rm -f "$log"
    absent=$(missing "${names[@]}")
    [ -z "$absent" ] || fail "pip counts these as installed, but $PY does not find them: $absent. Remove them with pip uninstall and run this again."
    touch "$stamp"
}

# install, only where a package is missing: whoever starts a run needs no network for what is there.
install_missing() {
    [ -z "$(missing "${NEEDED[@]}")" ] || step "installation" install ""
}

pip_install() {
    # DS_BUILD_OPS=0: nothing of DeepSpeed is compiled, now or later.
    DS_BUILD_OPS=0 "$PY" -m pip install --disable-pip-version-check -c constraints.txt "$@"
}
