#!/usr/bin/env bash
# Downloads what the peers of the GPU step need beside Python 3.12, PyTorch 2.11, transformers, accelerate and
# peft, as wheels for a machine without a network.
#
#   bench/peers/wheels.sh                  into .wheels
#   bench/peers/wheels.sh FOLDER
#
# There:  python3 -m pip install --no-index --no-deps --target site FOLDER/*.whl && export PYTHONPATH=site
#
# bitsandbytes is left out: alone it has 43 MB, and PyTorch's AdamW stands in for it.
set -eu

folder=${1:-$(dirname "$0")/../../.wheels}
# torchao 0.17 is built against PyTorch 2.11. importlib-metadata is the one requirement of diffusers that
# neither PyTorch nor transformers brings.
packages="diffusers==0.42.1 torchao==0.17.0 importlib-metadata==10.2.0"
most_mb=45

mkdir -p "$folder"
rm -f "$folder"/*.whl
# shellcheck disable=SC2086
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux2014_x86_64 \
    --dest "$folder" $packages
ls -l "$folder"/*.whl
mb=$(du -cm "$folder"/*.whl | tail -1 | cut -f1)
echo "$mb MB in all"
if [ "$mb" -ge "$most_mb" ]; then
    echo "expected less than $most_mb MB" >&2
    exit 1
fi
