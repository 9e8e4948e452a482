"""Tests of scripts/gpu-check on a machine without a card: python3 scripts/gpu_check_test.py"""
import json
import os
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

SCRIPT = Path(__file__).with_name("gpu-check")
CONFIGURATIONS = [
    "bf16",
    "float8",
    "uint3-24gb",
    "uint3-13gb-rank16",
    "float8-20gb-rank16",
    "bf16-512px",
    "bf16-512px-direct",
]
FAILING_TESTS = """echo "test ops::gemm::nt ... FAILED"
echo "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"
echo "gpu is $TENGGAT_TEST_GPU" >&2
exit 101"""
# Hangs in float8, fails in uint3, and says which options it got.
TENGGAT = """case "$*" in
*float8*) sleep 60 ;;
*uint3*) echo "out of memory" >&2; exit 1 ;;
esac
echo "{\\"options\\": \\"$*\\"}" """


class GpuCheck(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        (self.folder / "out").mkdir()

    def program(self, name, text):
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def run_script(self, *arguments):
        """Exit code, report and seconds of a dry run."""
        command = [SCRIPT, "--dry", "--results", self.folder / "results", *arguments]
        began = time.monotonic()
        done = subprocess.run(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
            env=os.environ | {"OUT": str(self.folder / "out")})
        took_s = time.monotonic() - began
        path = done.stdout.strip()
        return done.returncode, json.loads(Path(path).read_text()) if path else done.stderr, took_s

    def test_every_stage_runs_in_order(self):
        code, report, _ = self.run_script("--commit", "abc", "--sanitize", "ops")
        self.assertEqual(code, 0)
        names = [(entry["stage"], entry["name"]) for entry in report["stages"]]
        bench = [("bench", name) for name in CONFIGURATIONS]
        device = [("tests", "device-tests"), ("sanitize", "device-tests")]
        self.assertEqual(names, [*device, *bench, ("peers", "ways")])
        head = [report[key] for key in ("card", "driver", "commit")]
        self.assertEqual(head, ["NVIDIA Stub Card", "0.0", "abc"])
        results = [entry["result"] for entry in report["stages"]]
        self.assertEqual(results[0], {"passed": 2, "failed": 0, "ignored": 1, "failures": []})
        self.assertEqual(results[1], {"memory_errors": 0})
        self.assertEqual(results[2:], [{"stub": True}] * len(CONFIGURATIONS) + [[{"way": "stub"}]])
        self.assertRegex(report["stages"][-1]["command"], r"--seconds-per-way \d+ ")
        name = f"{report['date'][:10]}-stub-card-gpu-check"
        self.assertEqual(json.loads((self.folder / "out" / f"{name}.json").read_text()), report)
        self.run_script()
        written = sorted(path.name for path in (self.folder / "results").iterdir())
        self.assertEqual(written, [f"{name}-2.json", f"{name}.json"])

    def test_what_fails_or_hangs_does_not_stop_the_rest(self):
        tests = self.program("failing", FAILING_TESTS), self.program("passing", "echo; exit 0")
        code, report, took_s = self.run_script(
            "--tests", *tests, "--tenggat", self.program("tenggat", TENGGAT), "--minutes", "0.3")
        self.assertEqual(code, 1)
        failing, passing, *bench, peers = report["stages"]
        self.assertEqual((failing["exit_code"], failing["result"]["failures"]), (101, ["ops::gemm::nt"]))
        self.assertIn("gpu is 1", failing["tail"])
        self.assertEqual((passing["exit_code"], passing["result"]), (0, None))
        self.assertEqual([entry["exit_code"] for entry in bench], [0, 124, 1, 1, 124, 0, 0])
        self.assertEqual([entry["timed_out"] for entry in bench], [False, True, False, False, True, False, False])
        self.assertEqual(bench[2]["tail"], "out of memory")
        self.assertTrue(bench[0]["result"]["options"].endswith("--json --qtype bf16 --rank 128"))
        self.assertEqual(peers["result"], [{"way": "stub"}])
        self.assertLess(took_s, 18)

    def test_without_time_left_nothing_starts(self):
        slow = self.program("slow", "sleep 60")
        code, report, took_s = self.run_script(
            "--tests", slow, "--minutes", "0.02", "--stages", "tests,bench")
        self.assertEqual(code, 1)
        self.assertEqual({entry.get("skipped") for entry in report["stages"]}, {"no time left"})
        self.assertLess(took_s, 5)

    def test_chosen_stages_and_wrong_options(self):
        code, report, _ = self.run_script("--stages", "peers")
        self.assertEqual((code, [entry["stage"] for entry in report["stages"]]), (0, ["peers"]))
        code, said, _ = self.run_script("--stage", "peers")
        self.assertEqual(code, 2)
        self.assertIn("unknown option --stage", said)


if __name__ == "__main__":
    unittest.main()
