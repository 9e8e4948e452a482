"""Puts what scripts/gpu-check ran into one JSON file: gpu_check_report.py FOLDER FILE KEY=VALUE...

FOLDER holds `records` (stage, name, exit code, seconds, limit, command; with tabs), the output of each
command in <stage>-<name>.out and .err, and the results of the peers in peers.jsonl. A command without an exit
code did not run.
"""
import json
import os
import re
import sys
from pathlib import Path

# Characters of a failed command's output that are kept.
TAIL = 2000
# Exit codes of `timeout` when the time was over: by request, and by force.
TIMED_OUT = ("124", "137")


def whole_json(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def json_lines(path):
    lines = path.read_text().splitlines() if path.exists() else []
    return [value for value in map(whole_json, lines) if value is not None]


def test_counts(text):
    counts = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", text, re.M)
    if not counts:
        return None
    passed, failed, ignored = (sum(map(int, column)) for column in zip(*counts))
    failures = re.findall(r"^test (\S+) \.\.\. FAILED", text, re.M)
    return {"passed": passed, "failed": failed, "ignored": ignored, "failures": failures}


def parsed(folder, stage, name, output):
    if stage == "bench":
        return whole_json(output)
    if stage == "peers":
        return json_lines(folder / "peers.jsonl") if name == "ways" else None
    result = test_counts(output)
    errors = re.findall(r"ERROR SUMMARY: (\d+) error", output)
    if errors:
        result = (result or {}) | {"memory_errors": sum(map(int, errors))}
    return result


def without_folders(command):
    return re.sub(r"(?<!\S)/\S*/", "", command)


def entry(folder, line):
    stage, name, code, seconds, limit, command = line.split("\t", 5)
    if not code:
        return {"stage": stage, "name": name, "exit_code": None, "skipped": command}
    text = {end: (folder / f"{stage}-{name}.{end}").read_text(errors="replace") for end in ("out", "err")}
    result = {
        "stage": stage, "name": name, "exit_code": int(code), "timed_out": code in TIMED_OUT,
        "seconds": float(seconds), "limit_s": float(limit), "command": without_folders(command),
        "result": parsed(folder, stage, name, text["out"]),
    }
    if code != "0":
        result["tail"] = (text["out"][-TAIL:] + text["err"][-TAIL:]).strip()
    return result


def main():
    folder, file = map(Path, sys.argv[1:3])
    report = dict(argument.split("=", 1) for argument in sys.argv[3:])
    report["minutes"], report["dry"] = float(report["minutes"]), bool(report["dry"])
    report["stages"] = [entry(folder, line) for line in (folder / "records").read_text().splitlines()]
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(beside, file)


if __name__ == "__main__":
    main()
