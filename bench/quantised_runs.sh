#!/usr/bin/env bash
# Trains the mini model with its base in bf16, float8 and uint3, as many steps and the same seeds each, and prints what
# the LoRAs gain on held-out pictures, and the losses on the way.
#
#   bench/quantised_runs.sh                          600 steps, seeds 1 2 3
#   bench/quantised_runs.sh 200 7                    200 steps, seed 7
#   TENGGAT=path/to/tenggat bench/quantised_runs.sh
#
# `own base`: velocity errors of the run's own base without and with the LoRA, as the run measures them. `bf16 base`: the
# same LoRA on the base as published. A gain is the error without the LoRA less that with it, over the former.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
tenggat=${TENGGAT:-$root/target/release/tenggat}
steps=${1:-600}
shift || true
seeds=${*:-1 2 3}
formats="bf16 float8 uint3"
data=$root/assets/mini/demo-dataset
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

for format in $formats; do
    for seed in $seeds; do
        case $format in
            bf16) base="quantize: false" ;;
            *) base="quantize: true, quantize_te: false, qtype: $format" ;;
        esac
        sed -e "s/model:/model:\n        ${base//, /\\n        }/" -e "s/batch_size: 4/batch_size: 4\n        steps: $steps/" \
            "$root/assets/mini/demo.yaml" > "$folder/job.yaml"
        log=$folder/$format-$seed.log
        OUT=$folder SEED=$seed DATA=$data/train \
            "$tenggat" train "$folder/job.yaml" --name "$format-$seed" --held-out "$data/test" > "$log"
        own=$(grep -o 'velocity error [0-9.]*' "$log" | awk '{ print $3 }' | paste -sd' ')
        published=$("$tenggat" score --model mini --lora "$folder/$format-$seed/last.safetensors" --data "$data/test" \
            --measure velocity --noises 4 --json | grep -o '"total": [0-9.]*' | awk '{ print $2 }' | paste -sd' ')
        echo "$format $seed $own $published" >> "$folder/errors"
    done
done

echo "$steps steps, batch 4, rank 16"
echo
echo "| base | seed | own base: without | with LoRA | gain | bf16 base: without | with LoRA | gain |"
echo "|---|---|---|---|---|---|---|---|"
awk '{ printf "| %s | %s | %.5f | %.5f | %.2f %% | %.5f | %.5f | %.2f %% |\n", $1, $2, $3, $4, 100 * (1 - $4 / $3), $5, $6,
    100 * (1 - $6 / $5) }' "$folder/errors"
echo
echo "Means, and their share of bf16's; the last columns hold the run's own base with the LoRA against bf16 without:"
echo
echo "| base | gain, own base | of bf16's | gain, bf16 base | of bf16's | own against bf16 | of bf16's |"
echo "|---|---|---|---|---|---|---|"
awk '{ n[$1]++; a[$1] += 1 - $4 / $3; b[$1] += 1 - $6 / $5; if ($1 == "bf16") bare[$2] = $3
        c[$1] += 1 - $4 / bare[$2]; if (n[$1] == 1) order[++k] = $1 }
    END { m = n["bf16"]; for (i = 1; i <= k; i++) { f = order[i]
        printf "| %s | %.2f %% | %.1f %% | %.2f %% | %.1f %% | %.2f %% | %.1f %% |\n", f,
            100 * a[f] / n[f], 100 * a[f] / n[f] * m / a["bf16"], 100 * b[f] / n[f], 100 * b[f] / n[f] * m / b["bf16"],
            100 * c[f] / n[f], 100 * c[f] / n[f] * m / c["bf16"] } }' "$folder/errors"
echo
echo "Mean loss of a tenth of the steps each:"
echo
echo "| base |$(for i in 1 2 3 4 5 6 7 8 9 10; do printf ' to %d |' $((steps * i / 10)); done)"
echo "|---|$(printf -- '---|%.0s' 1 2 3 4 5 6 7 8 9 10)"
for format in $formats; do
    cat "$folder/$format"-*/metrics.jsonl | sed -E 's/.*"step":([0-9]+).*"loss":([0-9.eE+-]+).*/\1 \2/' |
        awk -v steps="$steps" -v name="$format" '{ i = int(($1 - 1) * 10 / steps); sum[i] += $2; n[i]++ }
            END { printf "| %s |", name; for (i = 0; i < 10; i++) printf " %.4f |", sum[i] / n[i]; print "" }'
done
