"""Seconds per LoRA training step of the full-size Qwen-Image transformer with PyTorch, in the ways people
train.

Random weights of the published dimensions, made on the device; batch 1; LoRA on the 14 linears of every
block. A step is noise, forward, mean squared error of the velocity, backward, clipping to 1.0 and AdamW.

  a         bf16, eager, every block computes its activations again (gradient checkpointing)
  b         bf16, blocks compiled, as many of them keep their activations as there is memory for
  c         b with torchao's float8 products for the frozen linears, in the faster recipe; c-tensorwise and
            c-rowwise: in that one
  d-uint3   what ai-toolkit does: frozen weights of 3 bits, whole again in every product, LoRA in true
            float32, eager, gradient checkpointing, 8-bit AdamW if bitsandbytes is there
  d-float8  the same with torchao's float8 weights

a to c take the fastest attention that PyTorch offers for the shape and a LoRA in bf16 from peft; d takes its
defaults. Each way runs in a process of its own; one that fails says why, and the others go on. `first step`
counts from the start of the process until the first step is done; peaks of memory are those of the steps that
count.

Install:  pip install torch==2.11 'diffusers>=0.42' torchao==0.17 peft transformers
          (without a network: bench/peers/wheels.sh)
Example:  python bench/peers/gpu_step.py --ways a,b,c,d-uint3,d-float8 --json out.jsonl
          python bench/peers/gpu_step.py --device cpu --layers 2 --heads 2 --resolution 128 --check

Prints one JSON object a way and then a table; `--json` keeps the objects, one a line. Exit code 1 if a way
failed.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

WAYS = ("a", "b", "c", "c-tensorwise", "c-rowwise", "d-uint3", "d-float8")
DEFAULT_WAYS = "a,b,c,d-uint3,d-float8"
# A way that is this many times as old as it should be is stopped: compiling takes its time.
PATIENCE = 3


def side(options):
    """The process of one way: prints its result as the last line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    import gpu_ways

    try:
        result = gpu_ways.run(options)
    except SystemExit as refusal:
        result = {"way": options["way"], "error": str(refusal)}
    except Exception as error:  # Whatever breaks one way is its result.
        import traceback

        traceback.print_exc()
        result = {"way": options["way"], "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(result), flush=True)


def take(way, arguments):
    options = vars(arguments) | {"way": way, "began": time.time()}
    # A file, no pipe: the compiler's own processes may hold a pipe open after the end.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, __file__, "--side", json.dumps(options)], stdout=output)
        try:
            process.wait(PATIENCE * arguments.seconds_per_way)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return {"way": way, "error": f"stopped after {PATIENCE * arguments.seconds_per_way:.0f} s"}
        output.seek(0)
        lines = output.read().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        return {"way": way, "error": f"ended with code {process.returncode} and no result"}


def row(result):
    if "error" in result:
        return f"{result['way']:<13} {result['error'].splitlines()[0][:100]}"
    if "check" in result:
        losses = result["losses"]
        return (f"{result['way']:<13} check passed: loss {losses[0]:.4f} to {losses[-1]:.4f},"
                f" {result['lora_with_gradients']} LoRA matrices with gradients")
    step = result["step_s"]
    memory = "".join(
        f" {result[key] / 1e9:9.2f}" if key in result else f" {'-':>9}"
        for key in ("peak_allocated_bytes", "peak_reserved_bytes"))
    times = " ".join(f"{step[key]:9.4f}" for key in ("median", "min", "max"))
    return (f"{result['way']:<13} {times} {len(result['steps_s']):5d}{memory} {result['first_step_s']:10.1f}"
            f" {result['checkpointed_blocks']:10d}  {result['title']}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", default=DEFAULT_WAYS, help=f"with commas; of {', '.join(WAYS)}")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--resolution", type=int, default=1024, help="side of the square picture, pixels")
    parser.add_argument("--text-tokens", type=int, default=200)
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--heads", type=int, default=24, help="heads of 128 channels")
    parser.add_argument("--steps", type=int, default=30, help="steps that count")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them, after the first")
    parser.add_argument(
        "--seconds-per-way", type=float, default=60,
        help="a way this old takes no more steps (3 at least); one three times as old is stopped")
    parser.add_argument(
        "--kept-blocks", type=int, help="blocks of b and c that keep their activations (default: what fits)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--check", action="store_true", help="assert on one batch that gradients arrive and the loss falls")
    parser.add_argument("--json", help="file for the results, one object a line")
    arguments = parser.parse_args()
    ways = arguments.ways.split(",")
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        parser.error(f"--ways: unknown {', '.join(unknown)}; expected some of {', '.join(WAYS)}")
    results = []
    if arguments.json:
        open(arguments.json, "w").close()
    for way in ways:
        result = take(way, arguments)
        results.append(result)
        print(json.dumps(result), flush=True)
        if arguments.json:
            with open(arguments.json, "a") as file:
                file.write(json.dumps(result) + "\n")
    print(f"\n{'way':<13} {'median s':>9} {'min':>9} {'max':>9} {'steps':>5} {'peak GB':>9} {'reserved':>9}"
          f" {'first step':>10} {'recomputed':>10}")
    for result in results:
        print(row(result))
    sys.exit(any("error" in result for result in results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        side(json.loads(sys.argv[2]))
    else:
        main()
