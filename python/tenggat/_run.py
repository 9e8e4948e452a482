"""Runs of the program, with its events as they come."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterator, List, Mapping, Optional, Sequence, Union

from ._program import TenggatError, find_program

#: One event of a run, as docs/events.md describes it: ``event["event"]`` is its name.
Event = Dict[str, Any]
#: A job: the path of its file, or what the file would hold.
Job = Union[str, "os.PathLike[str]", Mapping[str, Any]]

# Lines of the program's messages that are kept for an error.
_KEPT_LINES = 40


@dataclass(frozen=True)
class Result:
    """What came out of a run.

    Attributes:
        lora: the newest LoRA file, if one was saved.
        steps: updates in it.
        outcome: ``"done"``, or ``"stopped"`` if somebody asked for the end.
    """

    lora: Optional[Path]
    steps: int
    outcome: str


def train(
    job: Job,
    *,
    budget: Optional[str] = None,
    deadline: Optional[str] = None,
    name: Optional[str] = None,
    on_event: Optional[Callable[[Event], None]] = None,
    arguments: Sequence[str] = (),
    show: bool = True,
) -> Result:
    """Trains the LoRA of a job and returns when the run has ended.

    If this is interrupted, or ``on_event`` raises, the program is asked to end: it saves first.

    Args:
        job: path of a job file, or the job itself.
        budget: time the run may take, such as ``"90s"`` or ``"2h"``.
        deadline: when it must have ended, such as ``"18:00"``.
        name: name of the run, in place of the job's.
        on_event: is called with each event as it comes.
        arguments: further arguments of ``tenggat train``.
        show: whether the program's messages go to standard error.

    Raises:
        TenggatError: the run failed.
    """
    options: List[str] = ["--events", "jsonl", *arguments]
    for flag, value in (("--budget", budget), ("--deadline", deadline), ("--name", name)):
        if value is not None:
            options += [flag, value]
    with _job_file(job) as path:
        return _follow([find_program(), "train", path, *options], on_event, show)


def plan(
    job: Job,
    *,
    gpu: Optional[str] = None,
    budget: Optional[str] = None,
    arguments: Sequence[str] = (),
) -> Dict[str, Any]:
    """Forecasts what a job takes in time, memory and money, as docs/plan-json.md describes it.

    Args:
        job: path of a job file, or the job itself.
        gpu: one card or several, such as ``"4090,h100-sxm"`` or ``"all"``.
        budget: time the run may take.
        arguments: further arguments of ``tenggat plan``.

    Raises:
        TenggatError: the job cannot be planned.
    """
    options: List[str] = ["--json", *arguments]
    for flag, value in (("--gpu", gpu), ("--budget", budget)):
        if value is not None:
            options += [flag, value]
    with _job_file(job) as path:
        command = [find_program(), "plan", path, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TenggatError(done.stderr.strip(), done.returncode)
    planned: Dict[str, Any] = json.loads(done.stdout)
    return planned


@contextmanager
def _job_file(job: Job) -> Iterator[str]:
    """The path of the job's file; a job that is no file gets one for as long as it is needed."""
    if not isinstance(job, Mapping):
        yield os.fspath(job)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "job.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(job, file)
        yield path


def _follow(command: List[str], on_event: Optional[Callable[[Event], None]], show: bool) -> Result:
    # In a session of its own it hears of Ctrl-C through us alone, and once: a second signal ends it at once.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    said: Deque[str] = deque(maxlen=_KEPT_LINES)
    listener = threading.Thread(target=_listen, args=(process, said, show), daemon=True)
    listener.start()
    lora, steps, outcome = None, 0, "done"
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event: Event = json.loads(line)
            if event["event"] == "saved":
                lora = Path(event["path"])
            elif event["event"] == "ended":
                steps, outcome = event["steps"], event["outcome"]
            if on_event is not None:
                on_event(event)
        process.wait()
    except BaseException:
        process.terminate()
        # What it still prints is read away, so that it can end.
        process.communicate()
        raise
    listener.join()
    if process.returncode != 0:
        raise TenggatError(_reason(said), process.returncode)
    return Result(lora=lora, steps=steps, outcome=outcome)


def _listen(process: "subprocess.Popen[str]", said: Deque[str], show: bool) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if show:
            sys.stderr.write(line)


def _reason(said: Deque[str]) -> str:
    """The error that the program ended with, which may have several lines."""
    lines = list(said)
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    return "".join(lines[starts[-1] :] if starts else lines).strip().removeprefix("error: ")
