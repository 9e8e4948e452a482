"""ai-toolkit inside a budget: `tenggat drive` beside ai-toolkit's own run of hand-picked steps.

usage: ai_toolkit.py CHECKOUT PYTHON [--tenggat target/release/tenggat] [--runs 10] [--out results.jsonl]

CHECKOUT is a copy of ostris/ai-toolkit, PYTHON one that has its packages; nothing of either is changed. Both train the
embedded mini model on its 24 pictures on the processor, at the same time and with one thread each. The hand-picked steps
are what a careful user works out: seconds per step of a trial run, four fifths of the budget. A run that is not done when
the budget is over is killed, as a rented machine is. Held-out errors are `tenggat score`'s, on pictures that neither saw.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MINI = os.path.join(HERE, "..", "..", "assets", "mini")
SAFETY = 0.8
TRIAL_STEPS = 100


def job(folder, name, steps, data):
    process = {
        "type": "sd_trainer", "training_folder": folder, "device": "cpu", "training_seed": 42,
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "save": {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 4},
        "datasets": [{"folder_path": data, "resolution": [128], "cache_latents_to_disk": True}],
        "train": {
            "batch_size": 2, "lr": 3e-4, "optimizer": "adamw", "dtype": "fp32", "timestep_type": "sigmoid",
            "noise_scheduler": "flowmatch", "cache_text_embeddings": True, "gradient_checkpointing": False,
            "disable_sampling": True,
        },
        "model": {"name_or_path": os.path.abspath(os.path.join(MINI, "model")), "arch": "qwen_image", "quantize": False},
    }
    if steps is not None:
        process["train"]["steps"] = steps
    path = os.path.join(folder, name + ".json")
    with open(path, "w") as file:
        json.dump({"job": "extension", "config": {"name": name, "process": [process]}}, file)
    return path


def environment():
    return dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONUNBUFFERED="1")


def newest_whole(folder, name):
    """The newest file that safetensors itself would read, and the steps that it tells of."""
    best = None
    for entry in os.listdir(folder) if os.path.isdir(folder) else []:
        if not (entry.startswith(name) and entry.endswith(".safetensors")):
            continue
        path = os.path.join(folder, entry)
        with open(path, "rb") as file:
            data = file.read()
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            end = max(t["data_offsets"][1] for k, t in header.items() if k != "__metadata__")
            if 8 + length + end != len(data):
                continue
            steps = json.loads(header["__metadata__"]["training_info"])["step"]
        except (ValueError, KeyError):
            continue
        if best is None or steps > best[0]:
            best = (steps, path)
    return best


def by_hand(options, folder, data, budget, steps):
    path = job(folder, "hand", steps, data)
    log = open(os.path.join(folder, "hand.log"), "w")
    began = time.time()
    run = subprocess.Popen([options.python, os.path.join(options.checkout, "run.py"), path], stdout=log, stderr=log,
                           env=environment(), start_new_session=True)
    return {"run": run, "began": began, "budget": budget, "folder": os.path.join(folder, "hand"), "name": "hand"}


def driven(options, folder, data, budget):
    path = job(folder, "drive", None, data)
    log = open(os.path.join(folder, "drive.log"), "w")
    began = time.time()
    command = [options.tenggat, "drive", path, "--budget", f"{budget}s", "--trainer-dir", options.checkout,
               "--python", options.python]
    run = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
    return {"run": run, "began": began, "budget": budget, "folder": os.path.join(folder, "drive"), "name": "last"}


def finish(runs):
    """Waits for all; kills what is still there when its budget is over, with two seconds of grace for a drive."""
    waiting = list(runs)
    while waiting:
        for item in list(waiting):
            grace = 2.0 if item["name"] == "last" else 0.0
            if item["run"].poll() is not None:
                item["seconds"], item["killed"] = time.time() - item["began"], False
                waiting.remove(item)
            elif time.time() - item["began"] > item["budget"] + grace:
                os.killpg(item["run"].pid, signal.SIGKILL)
                item["run"].wait()
                item["seconds"], item["killed"] = time.time() - item["began"], True
                waiting.remove(item)
        time.sleep(0.005)


def score(options, lora):
    test = os.path.join(MINI, "demo-dataset", "test")
    command = [options.tenggat, "score", "--model", "mini", "--data", test, "--measure", "velocity", "--json"]
    told = subprocess.run(command + ["--lora", lora], capture_output=True, text=True, check=True).stdout
    return json.loads(told)


def velocity(report):
    """The velocity error of the bare model and with the LoRA."""
    trained = next(v for k, v in report.items() if k != "bare" and isinstance(v, dict) and "velocity" in v)
    return report["bare"]["velocity"]["total"], trained["velocity"]["total"]


def trial(options, work, data):
    """Seconds per step of short runs, as a user reads them off the bar; caches are made by the first.

    The runs that are compared go side by side, so two trials do as well: one alone would promise too much.
    """
    def seconds(item):
        with open(os.path.join(os.path.dirname(item["folder"]), "hand.log"), errors="replace") as file:
            bars = re.findall(rf"{TRIAL_STEPS}/{TRIAL_STEPS} \[(\d+):(\d+)", file.read())
        if not bars:
            sys.exit(f"the trial run did not finish; its log is {file.name}")
        return (60 * int(bars[-1][0]) + int(bars[-1][1])) / TRIAL_STEPS

    def start(name):
        folder = os.path.join(work, name)
        os.makedirs(folder)
        return by_hand(options, folder, data, 600, TRIAL_STEPS)

    finish([start("caches")])
    pair = [start("trial-1"), start("trial-2")]
    finish(pair)
    return max(map(seconds, pair))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=os.path.abspath)
    parser.add_argument("python", type=os.path.abspath)
    parser.add_argument("--tenggat", default=os.path.join(HERE, "..", "..", "target", "release", "tenggat"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--budgets", default="60,75,90,105,120,120,135,150,165,180")
    parser.add_argument("--out", default="ai-toolkit-runs.jsonl")
    options = parser.parse_args()
    options.tenggat = os.path.abspath(options.tenggat)
    work = tempfile.mkdtemp(prefix="ai-toolkit-")
    data = os.path.join(work, "data")
    shutil.copytree(os.path.join(MINI, "demo-dataset", "train"), data)
    step_s = max(trial(options, work, data), 0.02)
    print(f"trial: {step_s:.3f} s a step", flush=True)
    budgets = [int(b) for b in options.budgets.split(",")]
    for number in range(options.runs):
        budget = budgets[number % len(budgets)]
        folder = os.path.join(work, str(number))
        os.makedirs(folder)
        steps = max(int(SAFETY * budget / step_s), 1)
        runs = [by_hand(options, folder, data, budget, steps), driven(options, folder, data, budget)]
        finish(runs)
        line = {"run": number, "budget_s": budget, "load": os.getloadavg()[0], "hand_steps": steps}
        for kind, item in zip(("hand", "drive"), runs):
            found = newest_whole(item["folder"], item["name"])
            line[kind] = {
                "seconds": round(item["seconds"], 2), "killed": item["killed"], "exit": item["run"].returncode,
                "steps": found[0] if found else None, "velocity": None,
            }
            if found:
                line["bare"], line[kind]["velocity"] = velocity(score(options, found[1]))
        with open(options.out, "a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
