"""Tests of scripts/gpu-check and scripts/gpu-pack on a machine without a card: python3 scripts/gpu_check_test.py"""
import importlib.machinery
import importlib.util
import json
import lzma
import os
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
BENCH = ["small-direct", "small-recorded", "bf16", "float8-fp8", "uint3-24gb", "bf16-512px"]
# Two modules of tests; one test fails, and what runs after it in the same process would be lost.
TESTS = """#!/bin/sh
case " $* " in
*" --list "*) echo "ops::gpu_a: test"; echo "ops::gpu_b: test"; echo "step::gpu_c: test"; exit 0 ;;
*gpu_a*) echo "test ops::gpu_a ... FAILED"
  echo "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"
  echo "gpu is $TENGGAT_TEST_GPU" >&2; exit 101 ;;
esac
echo "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"
"""
# Tells two steps and hangs with float8, fails with uint3, and says which options it got.
TENGGAT = """#!/bin/sh
case "$*" in
doctor*) echo '{"checks": []}'; exit 0 ;;
*float8*) echo '{"step": 1}'; echo '{"step": 2}'; printf '{"st'; exec sleep 60 ;;
*uint3*) echo "out of memory" >&2; exit 1 ;;
esac
echo "{\\"options\\": \\"$*\\"}"
echo "a note" >&2
"""


class GpuCheck(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        (self.folder / "out").mkdir()

    def program(self, name, text):
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run_script(self, *arguments):
        """Exit code, report and seconds of a dry run."""
        command = [SCRIPTS / "gpu-check", "--dry", "--results", self.folder / "results", *arguments]
        began = time.monotonic()
        done = subprocess.run(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
            env=os.environ | {"OUT": str(self.folder / "out")})
        took_s = time.monotonic() - began
        path = done.stdout.strip()
        return done.returncode, json.loads(Path(path).read_text()) if path else done.stderr, took_s

    def test_steps_run_in_the_order_of_their_worth(self):
        tenggat, tests = self.program("tenggat", TENGGAT), self.program("device", TESTS)
        code, report, _ = self.run_script("--commit", "abc", "--tenggat", tenggat, "--tests", tests, "--minutes", "0.2")
        self.assertEqual(code, 1)
        names = [step["name"] for step in report["steps"]]
        modules = ["tests: device ops", "tests: device step"]
        self.assertEqual(names, [*BENCH[:2], "doctor", *BENCH[2:4], *modules, *BENCH[4:]])
        self.assertEqual((report["facts"]["card"], report["commit"]), ("NVIDIA Stub Card", "abc"))
        by_name = {step["name"]: step for step in report["steps"]}
        # What hangs has told what it came to, and what comes after it has run, as long as there was time.
        late = by_name["float8-fp8"]
        self.assertEqual((late["timed_out"], late["result"]), (True, [{"step": 1}, {"step": 2}]))
        self.assertEqual(by_name["doctor"]["result"], {"checks": []})
        self.assertEqual(by_name["bf16"]["said"], "a note")
        self.assertIn("--fp8-products --seconds", " ".join(map(str, self.options(tenggat))))
        name = f"{report['date'][:10]}-stub-card-gpu-check.json"
        self.assertEqual(json.loads((self.folder / "out" / name).read_text()), report)

    def options(self, _):
        """The options of the step in 8 bits, from a run that does not hang."""
        echo = self.program("echo", '#!/bin/sh\necho "{\\"options\\": \\"$*\\"}"\n')
        _, report, _ = self.run_script("--tenggat", echo, "--steps", "float8-fp8")
        return [report["steps"][0]["result"][0]["options"]]

    def test_tests_run_a_process_for_each_module(self):
        tests = self.program("device", TESTS)
        code, report, _ = self.run_script("--tests", tests, "--steps", "tests")
        self.assertEqual(code, 1)
        failing, passing = report["steps"]
        self.assertEqual((failing["exit_code"], failing["result"]["failures"]), (101, ["ops::gpu_a"]))
        self.assertIn("gpu is 1", failing["tail"])
        self.assertEqual((passing["exit_code"], passing["result"]["passed"]), (0, 1))

    def test_a_record_is_there_when_the_call_is_killed(self):
        command = [SCRIPTS / "gpu-check", "--dry", "--results", self.folder / "results",
                   "--tenggat", self.program("tenggat", TENGGAT), "--steps", "bf16", "float8-fp8"]
        child = subprocess.Popen(list(map(str, command)), env=os.environ | {"OUT": str(self.folder / "out")},
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 30
        steps = []
        while time.monotonic() < until and not steps:
            time.sleep(0.1)
            written = list((self.folder / "out").glob("*.json"))
            steps = json.loads(written[0].read_text())["steps"] if written else []
        child.kill()
        child.wait()
        self.assertEqual([step["name"] for step in steps], ["bf16"])

    def test_without_time_left_nothing_starts(self):
        slow = self.program("slow", "#!/bin/sh\nexec sleep 60\n")
        code, report, took_s = self.run_script("--tenggat", slow, "--minutes", "0.02")
        self.assertEqual(code, 1)
        bench = [step for step in report["steps"] if step["name"] in BENCH]
        self.assertEqual({step.get("skipped") for step in bench}, {"no time left"})
        self.assertLess(took_s, 30)

    def test_packs_are_unpacked(self):
        pack = self.folder / "pack"
        pack.mkdir()
        for name, text in {"program": TENGGAT, "device-tests": TESTS}.items():
            (pack / f"{name}.xz").write_bytes(lzma.compress(text.encode()))
        code, report, _ = self.run_script("--pack", pack, "--steps", "small-direct", "tests")
        self.assertEqual((code, [step["exit_code"] for step in report["steps"]]), (1, [0, 101, 0]))

    def test_small_steps_keep_the_way_and_lose_the_size(self):
        echo = self.program("echo", '#!/bin/sh\necho "{\\"options\\": \\"$*\\"}"\n')
        _, report, _ = self.run_script("--tenggat", echo, "--small", "--steps", "uint3-24gb")
        options = report["steps"][0]["result"][0]["options"].split()
        self.assertIn("uint3", options)
        self.assertEqual([options.count(name) for name in ("--model", "--rank", "--memory-limit", "--warm-up")], [1, 1, 0, 1])
        self.assertEqual(options[options.index("--resolution") + 1], "64")

    def test_second_call_and_wrong_options(self):
        code, report, _ = self.run_script("--call", "second", "--steps", "peers")
        self.assertEqual((code, [step["result"] for step in report["steps"]]), (0, [[{"way": "stub"}]]))
        code, told, _ = self.run_script("--steps", "peer")
        self.assertEqual(code, 2)
        self.assertIn("unknown peer", told)


def script(name):
    """A script as a module."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(SCRIPTS / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


class GpuPack(unittest.TestCase):
    def test_files_of_the_tree_do_not_travel_twice(self):
        model = (SCRIPTS.parent / "assets/mini/model/vae/diffusion_pytorch_model.safetensors").read_bytes()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            program, packed = folder / "program", folder / "pack" / "program.xz"
            program.write_bytes(b"before" + model + b"behind")
            packed.parent.mkdir()
            self.assertEqual(script("gpu-pack").pack(program, packed), len(model) + 12)
            self.assertLess(packed.stat().st_size, len(model) // 100)
            whole = script("gpu-check").unpack(packed.parent, folder / "pack")["program"]
            self.assertEqual(whole.read_bytes(), program.read_bytes())
            # Packed from another tree, it is not run.
            about = packed.with_suffix(".json")
            about.write_text(about.read_text().replace("vae/", "transformer/"))
            self.assertEqual(script("gpu-check").unpack(packed.parent, folder), {})

    def test_what_is_packed_is_weighed(self):
        with tempfile.TemporaryDirectory() as out:
            for name in ("program", "gpu-tests"):
                (Path(out) / f"{name}.xz").write_bytes(bytes(1000))
            command = [SCRIPTS / "gpu-pack", "--no-build", "--out", out, "--without", "tensor-tests", "model-tests"]
            run = lambda *more: subprocess.run(
                [*map(str, command), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
            fits, heavy = run("--limit-mib", "1000"), run("--limit-mib", "1")
            self.assertEqual(fits.returncode, 0, fits.stderr)
            tree, *_, total = [int(line.split()[1].replace(",", "")) for line in fits.stdout.splitlines()]
            self.assertEqual(total, tree + 2000)
            self.assertGreater(tree, 1 << 20)
            self.assertEqual(heavy.returncode, 1)
            self.assertIn("bytes too many", heavy.stderr)


if __name__ == "__main__":
    unittest.main()
