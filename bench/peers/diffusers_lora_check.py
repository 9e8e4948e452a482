"""Holds tenggat's pictures against diffusers': same model folder, same LoRA file, same prompt and seed.

The LoRA goes through `QwenImagePipeline.load_lora_weights`, as any user of the file would load it, and everything runs
in float32 on the CPU. The picture without the LoRA is compared too, and the LoRA must change the picture by more than
the limit: else an adapter that is silently ignored would pass.

Install:  pip install torch 'diffusers>=0.42' transformers peft accelerate pillow numpy
Example:  tenggat demo --budget 20s --out demo
          python diffusers_lora_check.py --tenggat target/release/tenggat --model assets/mini/model \\
              --lora demo/demo.safetensors

Exit code 0 if every mean absolute difference of pixels is within --limit, 1 if not.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import QwenImagePipeline
from PIL import Image


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenggat", type=Path, required=True, help="the tenggat program")
    parser.add_argument("--model", type=Path, required=True, help="model folder in the diffusers layout")
    parser.add_argument("--lora", type=Path, required=True, help="LoRA file written by tenggat")
    parser.add_argument("--prompt", default="fox, neon sign style")
    parser.add_argument("--negative", default="")
    parser.add_argument("--size", default="128x128", metavar="WxH", help="sides are multiples of 16")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--limit", type=float, default=2.0, help="mean absolute difference, in steps of 1/255")
    parser.add_argument("--out", type=Path, help="folder to keep the pictures in")
    return parser.parse_args()


def tenggat_picture(args, lora, path):
    command = [args.tenggat.resolve(), "sample", "--model", args.model, "--prompt", args.prompt, "--negative", args.negative,
               "--size", args.size, "--steps", args.steps, "--guidance", args.guidance, "--seed", args.seed, "--out", path]
    if lora:
        command += ["--lora", lora]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return Image.open(path).convert("RGB")


def diffusers_picture(args, pipeline, path):
    width, height = (int(side) for side in args.size.split("x"))
    picture = pipeline(
        prompt=args.prompt, negative_prompt=args.negative, true_cfg_scale=args.guidance, width=width, height=height,
        num_inference_steps=args.steps, generator=torch.Generator("cpu").manual_seed(args.seed)).images[0]
    picture.save(path)
    return picture


def difference(a, b):
    """Mean and largest absolute difference of two pictures, in steps of 1/255."""
    gap = np.abs(np.asarray(a, dtype=np.int16) - np.asarray(b, dtype=np.int16))
    return gap.mean(), gap.max()


def main():
    args = parse_arguments()
    scratch = tempfile.TemporaryDirectory()
    out = args.out or Path(scratch.name)
    out.mkdir(parents=True, exist_ok=True)
    pipeline = QwenImagePipeline.from_pretrained(args.model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    theirs, within = {}, True
    for case, lora in (("without", None), ("with", args.lora)):
        if lora:
            pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
        theirs[case] = diffusers_picture(args, pipeline, out / f"diffusers-{case}.png")
        mean, most = difference(tenggat_picture(args, lora, out / f"tenggat-{case}.png"), theirs[case])
        print(f"{case} the LoRA: mean difference {mean:.4f}/255, largest {most}/255 (limit of the mean {args.limit}/255)")
        within &= mean <= args.limit
    effect, _ = difference(theirs["without"], theirs["with"])
    print(f"the LoRA itself: mean change {effect:.3f}/255")
    return within and effect > args.limit


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
