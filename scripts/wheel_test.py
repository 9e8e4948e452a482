"""Builds the wheel around a program that is there already, installs it into a fresh environment, and uses it.

    scripts/wheel_test.py target/release/tenggat

maturin builds wheels by calling cargo. Here it finds another `cargo` on the PATH, which passes questions on
and answers the order to compile with the given program: the wheel's contents and metadata are what a
release has, in seconds.
"""

import json
import os
import stat
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MATURIN = "maturin==1.9.4"

CARGO = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
if not any(word in ("rustc", "build") for word in arguments[:2]):
    os.execv({cargo!r}, [{cargo!r}, *arguments])
target = dict(kind=["bin"], crate_types=["bin"], name="tenggat", src_path={source!r}, edition="2024",
              doc=True, doctest=False, test=True)
profile = dict(opt_level="3", debuginfo=0, debug_assertions=False, overflow_checks=False, test=False)
print(json.dumps(dict(reason="compiler-artifact", package_id={package!r}, manifest_path={manifest!r},
                      target=target, profile=profile, features=["default", "mini"],
                      filenames=[{program!r}], executable={program!r}, fresh=True)))
print(json.dumps(dict(reason="build-finished", success=True)))
"""

USE = """
import sys, tenggat
folder, data = sys.argv[1:]
job = {
    "job": "extension",
    "config": {"name": "fox", "process": [{
        "type": "sd_trainer", "training_folder": folder, "network": {"type": "lora", "linear": 4},
        "datasets": [{"folder_path": data, "resolution": 64}],
        "train": {"batch_size": 1, "steps": 3, "lr": 1e-3, "timestep_type": "sigmoid"},
        "model": {"name_or_path": "mini", "arch": "qwen_image"},
    }]},
}
events = []
run = tenggat.train(job, budget="60s", on_event=events.append, show=False)
assert (run.steps, run.outcome) == (3, "done") and run.lora.is_file(), run
assert [e["done"] for e in events if e["event"] == "step"] == [1, 2, 3], events
assert tenggat.plan(job, gpu="4090")["plans"][0]["machine"] == "RTX 4090"

class Enough(Exception):
    pass

def one_step(event):
    if event["event"] == "step":
        raise Enough

job["config"]["process"][0]["train"]["steps"] = 1000000
job["config"]["name"] = "long"
try:
    tenggat.train(job, on_event=one_step, show=False)
    raise SystemExit("on_event was not heard")
except Enough:
    pass
# It was asked to end, and saved first.
import pathlib
assert (pathlib.Path(folder) / "long" / "long.safetensors").is_file()

job["config"]["process"][0]["train"]["lr"] = "fast"
try:
    tenggat.train(job, show=False)
    raise SystemExit("a job that cannot run was accepted")
except tenggat.TenggatError as error:
    assert error.exit_code == 1 and "fast" in str(error), error
"""


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def maturin():
    """maturin's program, fetched once."""
    folder = ROOT / "target" / "maturin"
    program = folder / "bin" / "maturin"
    if not program.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        run(*pip, "--target", folder, MATURIN)
    return program


def build(program, out, work):
    """The wheel around the program."""
    asked = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--offline"]
    metadata = json.loads(run(*asked, cwd=ROOT))
    package = next(package for package in metadata["packages"] if package["name"] == "tenggat")
    binary = next(target for target in package["targets"] if "bin" in target["kind"])
    cargo = work / "cargo"
    cargo.write_text(CARGO.format(
        python=sys.executable, cargo=run("sh", "-c", "command -v cargo").strip(), source=binary["src_path"],
        package=package["id"], manifest=package["manifest_path"], program=str(program)))
    cargo.chmod(cargo.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": f"{work}{os.pathsep}{os.environ['PATH']}", "CARGO": str(cargo)}
    options = ["--release", "--offline", "--compatibility", "linux", "--out", out]
    run(maturin(), "build", *options, cwd=ROOT, env=environment)
    [wheel] = out.glob("tenggat-*.whl")
    return wheel


def main():
    program = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "bin").mkdir()
        wheel = build(program, work / "out", work / "bin")
        names = zipfile.ZipFile(wheel).namelist()
        package = ["tenggat/__init__.py", "tenggat/__main__.py", "tenggat/py.typed"]
        for wanted in [*package, ".data/scripts/tenggat"]:
            assert any(name.endswith(wanted) for name in names), (wanted, names)
        venv.create(work / "venv", with_pip=True)
        own = work / "venv" / "bin"
        pip = [own / "python", "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"]
        run(*pip, wheel)
        version = run(program, "--version")
        assert run(own / "tenggat", "--version") == version
        assert run(own / "python", "-m", "tenggat", "--version") == version
        data = ROOT / "assets" / "mini" / "demo-dataset" / "train"
        # Another folder, so that the package is the installed one.
        run(own / "python", "-c", USE, work / "runs", data, cwd=work)
    print(f"ok: {wheel.name} installs and trains")


if __name__ == "__main__":
    main()
