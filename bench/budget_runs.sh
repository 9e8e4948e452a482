#!/usr/bin/env bash
# Runs `tenggat demo` with several budgets while other processes load the machine on and off, and prints for each run
# how much of its budget it used and whether it overran it.
#
#   bench/budget_runs.sh                    20 budgets from 15 to 180 s, 21 minutes
#   bench/budget_runs.sh 15 20 30           these budgets, in seconds
#   TENGGAT=path/to/tenggat bench/budget_runs.sh
#
# Time is counted from before the process starts until it has ended. `use` is that over the budget. A run that overran
# or failed, or a use below 95 %, makes the script end with 1.
set -u

tenggat=${TENGGAT:-$(dirname "$0")/../target/release/tenggat}
budgets=("$@")
if [ ${#budgets[@]} -eq 0 ]; then
    budgets=(15 18 21 24 27 30 34 38 42 47 52 58 65 73 82 92 105 120 150 180)
fi
cores=$(nproc)
folder=$(mktemp -d)

# As many busy loops as there are cores, on for 1 to 6 s, then off for 1 to 6 s.
load() {
    RANDOM=$1
    local busy=()
    trap 'kill "${busy[@]}" 2>/dev/null; exit' TERM
    while :; do
        busy=()
        for ((i = 0; i < 1 + RANDOM % cores; i++)); do
            (while :; do :; done) &
            busy+=($!)
        done
        # In the background, so that the end of the script does not have to wait for it.
        sleep $((1 + RANDOM % 6)) & wait $!
        kill "${busy[@]}"
        wait "${busy[@]}" 2>/dev/null
        sleep $((1 + RANDOM % 6)) & wait $!
    done
}

load 7 &
loader=$!
end() {
    kill "$loader" 2>/dev/null
    wait "$loader" 2>/dev/null
    rm -rf "$folder"
}
trap end EXIT

bad=0
printf '%8s %10s %8s %10s %8s  %s\n' budget took use overrun steps result
for budget in "${budgets[@]}"; do
    began=$EPOCHREALTIME
    "$tenggat" demo --budget "${budget}s" --out "$folder/run-$budget" >"$folder/log" 2>&1
    code=$?
    ended=$EPOCHREALTIME
    steps=$(wc -l <"$folder/run-$budget/metrics.jsonl" 2>/dev/null || echo 0)
    result=ok
    if [ $code -ne 0 ]; then result="failed ($code): $(tail -n 1 "$folder/log")"; fi
    if ! ls "$folder/run-$budget"/run-*.safetensors >/dev/null 2>&1; then result="no LoRA"; fi
    awk -v b="$budget" -v t0="$began" -v t1="$ended" -v steps="$steps" -v result="$result" 'BEGIN {
        t = t1 - t0; over = t > b ? t - b : 0
        printf "%6d s %8.2f s %6.1f %% %8.2f s %8d  %s\n", b, t, 100 * t / b, over, steps, result
        exit !(over == 0 && t >= 0.95 * b && result == "ok")
    }' || bad=1
done
exit $bad
