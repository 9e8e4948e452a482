"""A trainer like many: a progress bar, a save every so many steps, no channel.

usage: other_trainer.py OUT --max_train_steps N --save_every_n_steps M --step_s S [--saves_on_interrupt] [--crash WORDS]
"""

import json
import os
import struct
import sys
import time


def option(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def save(path, step):
    header = json.dumps({
        "__metadata__": {"ss_steps": str(step)},
        "a": {"dtype": "F32", "shape": [1024], "data_offsets": [0, 4096]},
    }).encode()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.flush()
        time.sleep(0.05)
        file.write(struct.pack("<f", 0.5) * 1024)


def main():
    out, total = sys.argv[1], int(option("--max_train_steps"))
    every, step_s = int(option("--save_every_n_steps", 0)), float(option("--step_s"))
    done = 0
    print("loading", flush=True)
    for weight in range(1, 61):
        sys.stderr.write(f"\rLoading weights: 1%| | {weight}/60 [00:01<00:02, 1.00it/s]")
    time.sleep(0.2)
    try:
        for step in range(1, total + 1):
            time.sleep(step_s)
            done = step
            bar = f"\rsteps:  1%| | {step}/{total} [00:01<00:02, 1.00it/s, avr_loss=0.25]"
            sys.stderr.write(bar)
            sys.stderr.flush()
            if every and step % every == 0:
                save(os.path.join(out, f"fox-step{step:08d}.safetensors"), step)
            if option("--crash") and step == 20:
                raise RuntimeError(option("--crash"))
    except KeyboardInterrupt:
        if "--saves_on_interrupt" not in sys.argv:
            sys.exit(130)
    save(os.path.join(out, "fox.safetensors"), done)


main()
