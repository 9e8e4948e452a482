#!/bin/sh
# Makes the mini model and the demo's data set from nothing but npm packages, in ./mini-build: about four hours on two
# cores. First: pip install -r requirements.txt
#
# make.sh 0.02 gives each training a fiftieth of its time, to see whether all of it runs.
set -eu
recipe=$(cd "$(dirname "$0")" && pwd)
share=${1:-1}
minutes() { python3 -c "print($1 * $share)"; }
mkdir -p mini-build/raw && cd mini-build

for package in @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 @iconify-json/twemoji@1.2.5 \
    @iconify-json/emojione@1.2.3 @iconify-json/fxemoji@1.2.2 @iconify-json/fluent-emoji-flat@1.2.6 \
    @iconify-json/fluent-emoji-high-contrast@1.2.6 emojibase-data@17.0.0; do
    folder=raw/$(printf %s "${package%@*}" | tr -d @ | tr / -)
    [ -e "$folder" ] && continue
    archive=$(npm pack "$package" --silent)
    mkdir -p "$folder.part" && tar xzf "$archive" -C "$folder.part" --strip-components=1
    mv "$folder.part" "$folder" && rm "$archive"
done

# One single-threaded process per core.
on_two_cores() {
    export MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 WORLD_SIZE=2 OMP_NUM_THREADS=1
    RANK=1 python3 "$@" &
    RANK=0 python3 "$@"
    wait $!
    unset MASTER_ADDR MASTER_PORT WORLD_SIZE OMP_NUM_THREADS
}

[ -e data/pictures.json ] || python3 "$recipe/prepare.py"
# The training writes its folder more than once: only a finished one gets the name that is looked for.
if [ ! -e work/vae ]; then
    on_two_cores "$recipe/vae.py" --minutes "$(minutes 31)" --out work/vae.part
    mv work/vae.part work/vae
fi
# Twice down from the full rate; the second time all of it at high noise and mostly on the core names.
if [ ! -e work/first-descent ]; then
    on_two_cores "$recipe/base.py" --minutes "$(minutes 69)"
    touch work/first-descent
fi
on_two_cores "$recipe/base.py" --resume --minutes "$(minutes 175)" --decay 0.6
python3 "$recipe/demo_set.py"
python3 "$recipe/sheet.py"
