"""Stands in for ai-toolkit's run.py: the same control channel, files and habits, and no training.

usage: run.py JOB.json; how it behaves is said by `stand_in` in the job's process. Needs Python alone.
"""

import json
import os
import signal
import sqlite3
import struct
import sys
import time


class Stopped(Exception):
    pass


class Trainer:
    def __init__(self, job):
        self.name = job["config"]["name"]
        process = job["config"]["process"][0]
        assert process["type"] == "diffusion_trainer", process["type"]
        self.habits = process.get("stand_in") or json.loads(os.environ.get("STAND_IN", "{}"))
        self.train = process["train"]
        self.save_config = process.get("save", {})
        self.sample = process.get("sample", {})
        self.folder = os.path.join(process["training_folder"], self.name)
        os.makedirs(self.folder, exist_ok=True)
        with open(os.path.join(self.folder, "config.yaml"), "w") as file:
            file.write(json.dumps(job))
        self.path = process["sqlite_db_path"]
        self.id = os.environ["AITK_JOB_ID"].strip()
        assert os.path.exists(self.path)
        self.began = time.time()
        self.once = self.path + ".once"
        self.saves = 0
        self.last_save = 0

    # The channel.

    def sql(self, text, *values):
        with sqlite3.connect(self.path, timeout=30.0, isolation_level=None) as database:
            return database.execute(text + " WHERE id = ?", (*values, self.id)).fetchone()

    def set(self, column, value):
        self.sql(f"UPDATE Job SET {column} = ?", str(value))

    def say(self, status, info):
        self.sql("UPDATE Job SET status = ?, info = ?", status, info)

    def asked(self, column):
        return self.sql(f"SELECT {column} FROM Job")[0] == 1

    def maybe_stop(self):
        if self.asked("stop") and not self.habits.get("ignores_stop"):
            self.say("stopped", "Job stopped")
            raise Stopped("Job stopped")

    # Misfortunes.

    def fires(self, fault):
        """Whether a fault that comes once in the whole drive comes now."""
        fired = open(self.once).read().split() if os.path.exists(self.once) else []
        if fault in fired:
            return False
        with open(self.once, "a") as file:
            file.write(fault + "\n")
        return True

    def misfortunes(self, step):
        now = time.time() - self.began
        for i, (at, kind, value) in enumerate(self.habits.get("faults", [])):
            if now < at or not self.fires(f"{kind}-{i}"):
                continue
            if kind == "stall":
                time.sleep(value)
            elif kind == "crash":
                raise RuntimeError(value)
            elif kind == "die":
                os.kill(os.getpid(), signal.SIGKILL)

    # Files.

    def save(self, number=None):
        self.maybe_stop()
        self.say("running", "Saving model")
        self.saves += 1
        self.last_save = self.step
        count = 4096
        body = struct.pack("<f", 0.25) * count
        if self.saves == self.habits.get("spoils_save"):
            body = struct.pack("<f", float("nan")) * count
        info = json.dumps({"step": self.step, "epoch": 0})
        tensors = {"diffusion_model.a.lora_A.weight": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
        lora = self.lora()
        if lora:
            tensors, body = self.read(lora)
            tensors.pop("__metadata__", None)
        header = json.dumps({"__metadata__": {"training_info": info, "format": "pt"}, **tensors}).encode()
        name = self.name + ("" if number is None else f"_{number:09d}") + ".safetensors"
        pause = self.habits.get("save_s", 0.02) / 4
        with open(os.path.join(self.folder, name), "wb") as file:
            half = len(body) // 2
            for part in (struct.pack("<Q", len(header)), header, body[:half], body[half:]):
                file.write(part)
                file.flush()
                time.sleep(pause)
        with open(os.path.join(self.folder, "optimizer.pt"), "wb") as file:
            file.write(b"state")
        self.clean_up()
        self.maybe_stop()
        self.say("running", "Training")

    def lora(self):
        """The file that saves are copies of: the last of `loras` that is for so many steps; none usually."""
        loras = [path for least, path in self.habits.get("loras", []) if self.step >= least]
        return loras[-1] if loras else None

    def read(self, path):
        """Header and body of a file."""
        with open(path, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            return json.loads(file.read(length)), file.read()

    def clean_up(self):
        keep = self.save_config.get("max_step_saves_to_keep", 5)
        names = [n for n in os.listdir(self.folder) if n.startswith(self.name + "_") and n.endswith(".safetensors")]
        paths = sorted((os.path.join(self.folder, n) for n in names), key=os.path.getctime)
        for path in paths[:-keep] if keep else []:
            os.remove(path)

    def resume(self):
        """The newest path that begins with the name, whatever it is."""
        names = [n for n in os.listdir(self.folder) if n.startswith(self.name)]
        if not names or self.habits.get("resumes_at_zero"):
            return 0
        newest = max((os.path.join(self.folder, n) for n in names), key=os.path.getctime)
        header, body = self.read(newest)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        assert len(body) == max(ends), f"{newest} is cut off"
        return json.loads(header["__metadata__"]["training_info"])["step"]

    def draw(self):
        self.maybe_stop()
        for picture in range(2):
            self.maybe_stop()
            self.say("running", f"Generating images - {picture}/2")
            time.sleep(self.habits.get("round_s", 0.1) / 2)
        self.maybe_stop()
        self.say("running", "Training")

    # The run.

    def step_time(self):
        now, factor = time.time() - self.began, 1.0
        for at, times in self.habits.get("pace", []):
            if now >= at:
                factor = times
        return self.habits.get("step_s", 0.02) * factor

    def run(self):
        self.say("running", "Starting")
        self.say("running", "Loading model")
        time.sleep(self.habits.get("load_s", 0.2) / 2)
        self.misfortunes(0)
        self.say("running", "Loading dataset")
        time.sleep(self.habits.get("load_s", 0.2) / 2)
        start = self.step = self.last_save = self.resume()
        self.maybe_stop()
        self.set("step", self.step)
        self.say("running", "Training")
        draws = bool(self.sample) and not self.train.get("disable_sampling")
        every = self.sample.get("sample_every", 100)
        if draws and self.step <= 1:
            self.draw()
        save_every = self.save_config.get("save_every", 1000)
        total = self.train["steps"]
        for index in range(start, total):
            self.step = index
            time.sleep(self.step_time())
            self.misfortunes(index)
            if index != start:
                if save_every and index % save_every == 0:
                    self.save(index)
                if draws and index % every == 0:
                    self.draw()
            self.step = index + 1
            sys.stdout.write(f"\rx:  1%| | {index + 1}/{total} [00:01<00:02, 1.00it/s, lr: 1.0e-04 loss: 5.0e-01]")
            sys.stdout.flush()
            self.set("step", self.step)
            self.maybe_stop()
            if self.asked("save_now"):
                self.set("save_now", 0)
                self.save(self.step)
        self.save()
        if draws:
            self.draw()
        self.say("completed", "Training completed")


def main():
    with open(sys.argv[1]) as file:
        trainer = Trainer(json.load(file))
    if trainer.habits.get("ignores_stop"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer.run()
    except Stopped:
        trainer.set("step", trainer.last_save)
        raise
    except KeyboardInterrupt:
        trainer.say("stopped", "Job stopped")
        sys.exit(0)
    except Exception as error:
        trainer.say("error", str(error))
        raise
    finally:
        time.sleep(trainer.habits.get("stop_s", 0.05))


main()
