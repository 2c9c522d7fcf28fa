#!/usr/bin/env bash
# Trains one run by N processes of this machine: bash launch/local.sh N [--restart=TIMES] COMMAND...
#     bash launch/local.sh 2 python -m kd_jax.main --config=kd:smoke
# Each takes an equal part of every batch; where there are GPUs, each has one. When one process dies, the others end, a
# line says which it was, and --restart starts them again, from the last checkpoint.
set -euo pipefail
fail() {
    echo "error: $1" >&2
    exit 2
}
case "${1:-}" in
    '' | *[!0-9]* | 0) fail "the number of processes is '${1:-}'; expected bash launch/local.sh N COMMAND..." ;;
esac
count="$1" restarts=0
shift
case "${1:-}" in
    --restart=*[!0-9]* | --restart=) fail "$1 is no number of times; expected --restart=N" ;;
    --restart=*)
        restarts="${1#--restart=}"
        shift
        ;;
esac
[ $# -gt 0 ] || fail "there is no command; expected for example python -m kd_jax.main --config=kd:smoke"

gpus="$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)"
pids=() stop=''
ask_all_to_stop() {  # each saves its state; this script waits for them
    stop="$1"
    kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap 'ask_all_to_stop 130' INT
trap 'ask_all_to_stop 143' TERM

while :; do
    port="$("${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    pids=()
    for ((id = 0; id < count; id++)); do
        if [ -z "${CUDA_VISIBLE_DEVICES+set}" ] && [ "$gpus" -ge "$count" ]; then
            export JAX_LOCAL_DEVICE_IDS="$id"
        fi
        "$@" --coordinator="127.0.0.1:$port" --processes="$count" --process_id="$id" &
        pids+=($!)
    done
    status=0 dead='' left="$count" waited=0
    while [ "$left" -gt 0 ]; do
        sleep 0.2 || true
        left=0
        for ((id = 0; id < count; id++)); do
            [ -n "${pids[id]}" ] || continue
            if kill -0 "${pids[id]}" 2>/dev/null; then
                left=$((left + 1))
                continue
            fi
            code=0
            wait "${pids[id]}" || code=$?
            pids[id]=''
            if [ "$code" -ne 0 ] && [ -z "$dead" ]; then
                status="$code" dead="$id"
            fi
        done
        if [ -n "$dead" ] && [ "$left" -gt 0 ]; then
            waited=$((waited + 1))
            [ "$waited" -ne 1 ] || [ -n "$stop" ] || echo "process $dead ended with exit status $status; the others end" >&2
            [ "$waited" -lt 100 ] || kill -KILL "${pids[@]}" 2>/dev/null || true  # they wait for it
        fi
    done
    [ -z "$stop" ] || exit "$stop"
    case "$status" in 0 | 2 | 130 | 143) exit "$status" ;; esac
    [ "$restarts" -gt 0 ] || exit "$status"
    restarts=$((restarts - 1))
    echo "starting again; $restarts more times where it is needed" >&2
done
