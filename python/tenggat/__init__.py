"""Trains Qwen-Image LoRAs inside a wall-clock budget.

The work is done by the program ``tenggat``, which the wheel installs; this package starts it and reads its
events.

>>> import tenggat
>>> run = tenggat.train("my_job.yaml", budget="2h", on_event=print)
>>> run.lora
PosixPath('output/my_run/my_run.safetensors')
"""

from ._program import TenggatError, find_program
from ._run import Event, Result, plan, train

__all__ = ["Event", "Result", "TenggatError", "find_program", "plan", "train"]
