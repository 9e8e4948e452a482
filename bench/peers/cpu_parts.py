"""Seconds of the parts around the training step on the CPU: tenggat against PyTorch, in turn.

Encoding and decoding a picture with the autoencoder, and embedding a caption with the text encoder, both from the same
model folder in float32. Each side runs in a process of its own; they take turns, as in `cpu_step.py`.

Install:  pip install torch 'diffusers>=0.42' transformers
Example:  cargo build --release -p tenggat-bench --bin cpu_parts
          python bench/peers/cpu_parts.py --model assets/mini/model
"""
import argparse
import os
import sys
import time

from cpu_step import Side, ratio

PARTS = ("encode", "decode", "text")


def torch_side(options):
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = options["threads"]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(int(options["threads"]))
    side = int(options["side"])
    if options["part"] == "text":
        from transformers import Qwen2_5_VLForConditionalGeneration

        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(f"{options['model']}/text_encoder").float().eval()
        ids = torch.arange(1, int(options["tokens"]) + 1)[None]
        mask = torch.ones_like(ids)

        def run():
            return model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    else:
        from diffusers import AutoencoderKLQwenImage

        vae = AutoencoderKLQwenImage.from_pretrained(options["model"], subfolder="vae").float().eval()
        picture = torch.randn(1, 3, 1, side, side)
        latents = torch.randn(1, vae.config.z_dim, 1, side // 8, side // 8)

        def run():
            if options["part"] == "encode":
                return vae.encode(picture).latent_dist.mode()
            return vae.decode(latents, return_dict=False)[0]

    with torch.inference_mode():
        run()
        print("ready", flush=True)
        for line in sys.stdin:
            times = []
            for _ in range(int(line)):
                began = time.perf_counter()
                run()
                times.append(time.perf_counter() - began)
            print(*(f"{t:.6f}" for t in times), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder in diffusers' layout")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--side", type=int, default=512, help="pixels of a side of the picture")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=2, help="runs of a side before the other has its turn")
    parser.add_argument("--tenggat", default="target/release/cpu_parts", help="the built program")
    arguments = parser.parse_args()
    environment = os.environ | {"RAYON_NUM_THREADS": str(arguments.threads)}
    for part in arguments.parts:
        options = [f"{key}={getattr(arguments, key)}" for key in ("model", "side", "tokens", "threads")]
        options.append(f"part={part}")
        ours = Side([arguments.tenggat, *options], environment)
        theirs = Side([sys.executable, __file__, "--side-of", *options])
        for _ in range(arguments.rounds):
            for side in (ours, theirs):
                side.round(arguments.repeats)
        print(part, "load", os.getloadavg()[0])
        ratio("wall-clock", ours.wall, theirs.wall)
        ratio("processor", ours.processor, theirs.processor)
        for side in (ours, theirs):
            side.stop()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side-of"]:
        torch_side(dict(argument.split("=", 1) for argument in sys.argv[2:]))
    else:
        main()
