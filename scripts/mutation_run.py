#!/usr/bin/env python3
"""Gives the built program spoilt inputs and counts how it ends.

    scripts/mutation_run.py --program target/release/tenggat --count 5000 --seed 1 --keep target/mutations

Jobs, LoRAs, images, model folders, archives, checkpoints, caches, metrics and command lines are spoilt in one to four
places; the same seed gives the same inputs. A panic (101), a death by a signal (an abort is 134) or a run of more than
10 seconds of processor time is a failure: its input is kept, and the exit code of this script is 1.
"""

import argparse
import collections
import concurrent.futures
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "assets/mini/demo-dataset/train"
MODEL = ROOT / "assets/mini/model"
MEMORY = 6 << 30
LONGEST_S = 10
# A loaded machine may let a process wait; processor time is what counts, and this only ends what sleeps for ever.
PATIENCE_S = 600

JOB = """job: extension
config:
  name: fox
  process:
    - type: sd_trainer
      training_folder: 'out'
      training_seed: 5
      network: {type: lora, linear: 4, linear_alpha: 4}
      save: {dtype: float32, save_every: 2, max_step_saves_to_keep: 2}
      datasets:
        - {folder_path: 'set', resolution: [64], caption_dropout_rate: 0.5, cache_latents_to_disk: true,
           cache_text_embeddings: true}
      train:
        {batch_size: 1, lr: 1e-3, steps: 2, optimizer: adamw8bit, timestep_type: sigmoid, lr_scheduler: cosine,
         ema_config: {use_ema: true, ema_decay: 0.9}}
      sample: {prompts: ['a fox --w 64 --h 64'], sample_every: 0, width: 64, height: 64, sample_steps: 1}
      model: {name_or_path: mini, arch: qwen_image}
"""

PIECES = [b"0", b"-1", b"1e400", b"1e38", b".nan", b".inf", b"18446744073709551615", b"9223372036854775808", b"4294967297",
          b"1000000000", b"null", b"true", b"''", b'"', b"'", b"[]", b"{}", b"[", b"}", b": ", b"- ", b"&a ", b"*a", b"!!str ",
          b"\n", b"\t", b"\0", b"\x1b]0;x\a", b"\x1b[2J", b"\xff\xfe", "é".encode(), b"../", b"${X}", b"[name]"]
NUMBERS = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]


def spoil(rng, data):
    """One change at one place."""
    data = bytearray(data)
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(8)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at:at + rng.randrange(1, 17)]
    elif kind == 3:
        data[at:at] = data[at:at + rng.randrange(1, 65)]
    elif kind == 4:
        width = rng.choice([1, 2, 4, 8])
        number = rng.choice(NUMBERS) & ((1 << 8 * width) - 1)
        data[at:at + width] = number.to_bytes(width, rng.choice(["little", "big"]))
    elif kind == 5:
        # A number in digits becomes another one.
        starts = [i for i in range(len(data)) if chr(data[i]).isdigit() and (i == 0 or not chr(data[i - 1]).isdigit())]
        if starts:
            start = rng.choice(starts)
            end = start
            while end < len(data) and chr(data[end]).isdigit():
                end += 1
            data[start:end] = rng.choice(PIECES[:10] + [str(n).encode() for n in NUMBERS])
    else:
        piece = rng.choice(PIECES)
        data[at:at + rng.choice([0, 1, len(piece)])] = piece
    return bytes(data)


def spoilt(rng, data):
    """One to four changes; those of safetensors files mostly in the header, whose length is put right again."""
    places = rng.randrange(1, 5)
    if len(data) > 8:
        (length,) = struct.unpack("<Q", data[:8])
        if 8 + length <= len(data) and data[8:9] == b"{" and rng.random() < 0.8:
            header = data[8:8 + length]
            for _ in range(places):
                header = spoil(rng, header)
            return struct.pack("<Q", len(header)) + header + data[8 + length:]
    for _ in range(places):
        data = spoil(rng, data)
    return data


class Run:
    """The folders that inputs are taken from."""

    def __init__(self, program, home):
        self.program, self.home = program, home
        self.whole = home / "whole"
        (self.whole / "set").mkdir(parents=True)
        for name in ["fox.png", "fox.txt", "bell.png", "bell.txt"]:
            shutil.copy(DEMO / name, self.whole / "set")
        (self.whole / "job.yaml").write_text(JOB)
        with zipfile.ZipFile(self.whole / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((self.whole / "set").iterdir()):
                archive.write(path, f"train_data/{path.name}")
        self.call(["train", "job.yaml"], self.whole, check=True)

    def call(self, arguments, folder, check=False):
        """Exit code (128 + the signal of a death), and what was said."""
        def limits():
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (LONGEST_S, LONGEST_S + 1))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache")}
        try:
            done = subprocess.run([str(self.program), *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S, preexec_fn=limits)
        except subprocess.TimeoutExpired as late:
            return "hang", late.stdout or b""
        if check and done.returncode != 0:
            sys.exit(f"the whole input fails already: {done.stdout.decode(errors='replace')}")
        return (128 - done.returncode if done.returncode < 0 else done.returncode), done.stdout

    def copy(self, folder, with_results=False):
        """The job with its images, in `folder`; results of a whole run if asked for."""
        folder.mkdir()
        shutil.copy(self.whole / "job.yaml", folder)
        shutil.copytree(self.whole / "set", folder / "set", ignore=None if with_results else shutil.ignore_patterns("_*"))
        if with_results:
            shutil.copytree(self.whole / "out", folder / "out")

    def change(self, rng, path):
        path.write_bytes(spoilt(rng, path.read_bytes()))

    def job(self, rng, folder):
        self.copy(folder)
        self.change(rng, folder / "job.yaml")
        return ["check", "job.yaml"]

    def image(self, rng, folder):
        self.copy(folder)
        self.change(rng, folder / "set" / rng.choice(["fox.png", "fox.txt"]))
        return [rng.choice(["check", "train"]), "job.yaml"]

    def lora(self, rng, folder):
        folder.mkdir()
        shutil.copy(self.whole / "out/fox/last.safetensors", folder / "a.safetensors")
        self.change(rng, folder / "a.safetensors")
        return ["sample", "--model", "mini", "--lora", "a.safetensors", "--prompt", "a", "--size", "32x32", "--steps", "1"]

    def model(self, rng, folder):
        folder.mkdir()
        files = sorted(path for path in MODEL.rglob("*") if path.is_file())
        spoil_this = rng.choice(files)
        for path in files:
            to = folder / "model" / path.relative_to(MODEL)
            to.parent.mkdir(parents=True, exist_ok=True)
            if path == spoil_this:
                to.write_bytes(spoilt(rng, path.read_bytes()))
            else:
                to.symlink_to(path)
        return ["sample", "--model", "model", "--prompt", "a fox", "--size", "32x32", "--steps", "1"]

    def archive(self, rng, folder):
        folder.mkdir()
        shutil.copy(self.whole / "a.zip", folder)
        self.change(rng, folder / "a.zip")
        return ["task", "--task-id", "t", "--model", "mini", "--dataset-zip", "a.zip", "--model-type", "qwen-image",
                "--expected-repo-name", "r", "--hours-to-complete", "0.0003", "--checkpoints-root", "ck", "--work-root", "wr"]

    def checkpoint(self, rng, folder):
        self.copy(folder, with_results=True)
        self.change(rng, folder / "out/fox" / rng.choice(["resume.state", "resume.state", "last.safetensors", "run.lock"]))
        text = (folder / "job.yaml").read_text().replace("steps: 2,", "steps: 4,")
        (folder / "job.yaml").write_text(text)
        return ["train", "job.yaml"]

    def cache(self, rng, folder):
        self.copy(folder, with_results=True)
        shutil.rmtree(folder / "out")
        files = sorted(path for path in (folder / "set").rglob("*.safetensors"))
        self.change(rng, rng.choice(files))
        return ["train", "job.yaml"]

    def metrics(self, rng, folder):
        self.copy(folder, with_results=True)
        self.change(rng, folder / "out/fox/metrics.jsonl")
        if rng.random() < 0.5:
            text = (folder / "job.yaml").read_text().replace("steps: 2,", "steps: 3,")
            (folder / "job.yaml").write_text(text)
            return ["train", "job.yaml"]
        return ["plan", "explain", "--duration", "1h", "--log", "out/fox"]

    def command_line(self, rng, folder):
        self.copy(folder)
        lines = [
            ["plan", "job.yaml", "--gpu", "h100", "--budget", "90m", "--price-per-hour", "2.5", "--rank", "16", "--steps", "10"],
            ["plan", "job.yaml", "--gpu", "all", "--memory-limit", "24GB", "--resolution", "512,768"],
            ["plan", "explain", "--duration", "2h", "--steps", "1500", "--s-per-step", "4..6", "--overhead", "5m"],
            ["plan", "steps", "--duration", "2h", "--s-per-step", "4.5"],
            ["check", "job.yaml", "--budget", "90s"],
            ["train", "job.yaml", "--budget", "1s", "--seed", "3"],
            ["sample", "--model", "mini", "--prompt", "a", "--size", "32x32", "--steps", "1", "--guidance", "1", "--seed", "4"],
            ["extend", "out/fox", "+5m"],
        ]
        line = rng.choice(lines)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(line))
            # A word that was spoilt before may be no UTF-8.
            word = os.fsencode(line[at])
            changed = rng.choice([lambda: spoil(rng, word), lambda: rng.choice(PIECES[:20]),
                                  lambda: str(rng.choice(NUMBERS)).encode(), lambda: b"-" + word])()
            # Threads without end are another matter, and a NUL can be in no argument.
            line = [*line[:at], os.fsdecode(changed.replace(b"\0", b"")), *line[at + 1:]]
        return line


SHARES = {"job": 36, "image": 12, "lora": 8, "model": 8, "archive": 1, "checkpoint": 6, "cache": 4, "metrics": 7,
          "command_line": 18}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/tenggat")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=list(SHARES), help="one kind of inputs alone")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=ROOT / "target/mutations", help="folder for inputs that fail")
    arguments = parser.parse_args()
    os.nice(10)
    kinds = [arguments.only] if arguments.only else [kind for kind, share in SHARES.items() for _ in range(share)]
    counts = collections.Counter()
    failures = []
    with tempfile.TemporaryDirectory(prefix="tenggat-mutations-") as home:
        run = Run(arguments.program.resolve(), Path(home))

        def one(number):
            kind = kinds[number % len(kinds)]
            rng = random.Random(f"{arguments.seed} {number}")
            folder = Path(home) / f"input-{number}"
            line = getattr(run, kind)(rng, folder)
            code, said = run.call(line, folder)
            if code == "hang" or code == 101 or code > 128:
                kept = arguments.keep / f"{kind}-{arguments.seed}-{number}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(folder, kept, symlinks=True)
                (kept / "command").write_text(f"{line}\n{code}\n" + said.decode(errors="replace"))
            shutil.rmtree(folder, ignore_errors=True)
            return kind, code, number

        with concurrent.futures.ThreadPoolExecutor(arguments.processes) as pool:
            for done, (kind, code, number) in enumerate(pool.map(one, range(arguments.count)), 1):
                counts[kind, code] += 1
                if code == "hang" or code == 101 or code > 128:
                    failures.append(f"{kind} {number}: {code}")
                    print("failure:", failures[-1], flush=True)
                if done % 500 == 0:
                    print(f"{done} of {arguments.count}", flush=True)
    codes = sorted({code for _, code in counts}, key=str)
    print("kind            " + "".join(f"{code!s:>8}" for code in codes))
    for kind in SHARES:
        row = [counts[kind, code] for code in codes]
        if any(row):
            print(f"{kind:<16}" + "".join(f"{n:>8}" for n in row))
    print(f"{sum(counts.values())} inputs, {len(failures)} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
