"""Seconds of a whole job on the CPU, and from its start to the end of the first step: tenggat against PyTorch.

Both train a LoRA of rank 16 on the same folder of pictures with captions, from the same model folder, batch 4, float32:
load the model, encode every picture and every caption, take `--steps` steps (the demo's 120 s allow about 2000), save the
LoRA. PyTorch's side is diffusers and peft with no more around them than that needs. The sides take turns; caches on disk
are removed before every run.

Install:  pip install torch 'diffusers>=0.42' peft transformers pillow
Example:  cargo build --release
          python bench/peers/cpu_start.py --model assets/mini/model --pictures assets/mini/demo-dataset/train
"""
import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = (r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|to_out\.0|to_add_out)"
           r"|img_mlp\.net\.(0\.proj|2)|txt_mlp\.net\.(0\.proj|2)|img_mod\.1|txt_mod\.1)")
JOB = """
job: extension
config:
  name: start
  process:
    - type: sd_trainer
      training_folder: {out}
      network: {{type: lora, linear: 16, linear_alpha: 16}}
      save: {{dtype: bf16, save_every: 100}}
      datasets:
        - {{folder_path: {pictures}, caption_ext: txt, resolution: {side}}}
      train: {{batch_size: 4, steps: {steps}, lr: 1e-4, optimizer: adamw, timestep_type: sigmoid}}
      model: {{name_or_path: {model}, arch: qwen_image}}
"""


def torch_side(model, pictures, side, steps, threads):
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = threads
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import numpy
    import torch
    from diffusers import QwenImagePipeline
    from peft import LoraConfig
    from PIL import Image

    torch.set_num_threads(int(threads))
    pipe = QwenImagePipeline.from_pretrained(model)
    latents, texts, masks = [], [], []
    mean = torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.inference_mode():
        for path in sorted(Path(pictures).glob("*.png")):
            picture = Image.open(path).convert("RGB").resize((int(side), int(side)))
            pixels = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[None, :, None] / 127.5 - 1
            latents.append((pipe.vae.encode(pixels).latent_dist.mode() - mean) / std)
            text, mask = pipe.encode_prompt(path.with_suffix(".txt").read_text(), device="cpu")
            texts.append(text[0])
            masks.append(mask)
    transformer = pipe.transformer
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))
    lora = [p for p in transformer.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(lora, lr=1e-4)
    pictures = torch.cat([x.clone() for x in latents])[:, :, 0]
    count, channels, height, width = pictures.shape
    packed = pictures.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    packed = packed.reshape(count, height * width // 4, channels * 4)
    lengths = torch.tensor([len(t) for t in texts])
    for step in range(int(steps)):
        drawn = torch.randperm(count)[:4]
        longest = int(lengths[drawn].max())
        text = torch.stack([torch.nn.functional.pad(texts[i].clone(), (0, 0, 0, longest - len(texts[i]))) for i in drawn])
        noise, sigma = torch.randn(4, *packed.shape[1:]), torch.sigmoid(torch.randn(4))
        level = sigma.view(-1, 1, 1)
        prediction = transformer(
            hidden_states=(1 - level) * packed[drawn] + level * noise, timestep=sigma, encoder_hidden_states=text,
            encoder_hidden_states_mask=torch.arange(longest) < lengths[drawn, None],
            img_shapes=[[(1, height // 2, width // 2)]] * 4, return_dict=False)[0]
        torch.nn.functional.mse_loss(prediction, noise - packed[drawn]).backward()
        optimiser.step()
        optimiser.zero_grad()
        if step == 0:
            print("stepped", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        transformer.save_lora_adapter(folder)
    print("saved", flush=True)


def torch_s(arguments):
    """Seconds to the first step, and to the end."""
    began, first = time.perf_counter(), None
    command = [sys.executable, __file__, "--side-of", arguments.model, arguments.pictures, str(arguments.side),
               str(arguments.steps), str(arguments.threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == "stepped":
            first = time.perf_counter() - began
    if process.wait() or first is None:
        sys.exit("PyTorch's side failed")
    return first, time.perf_counter() - began


def tenggat_s(arguments):
    """Seconds to the first step, and to the end."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        shutil.copytree(arguments.pictures, pictures, ignore=shutil.ignore_patterns("_*"))
        job, out = Path(folder, "job.yaml"), Path(folder, "out")
        model = Path(arguments.model).resolve()
        job.write_text(JOB.format(out=out, pictures=pictures, model=model, side=arguments.side,
                                  steps=arguments.steps))
        metrics = out / "start" / "metrics.jsonl"
        began = time.perf_counter()
        process = subprocess.Popen(
            [arguments.tenggat, "train", job, "--threads", str(arguments.threads)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (metrics.exists() and metrics.read_bytes().endswith(b"\n")):
            if process.poll() is not None:
                sys.exit("tenggat did not step")
            time.sleep(0.005)
        first = time.perf_counter() - began
        if process.wait():
            sys.exit("tenggat failed")
        return first, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder in diffusers' layout")
    parser.add_argument("--pictures", required=True, help="folder of png files with captions in txt files")
    parser.add_argument("--side", type=int, default=128, help="pixels of a side of the pictures")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tenggat", default="target/release/tenggat")
    arguments = parser.parse_args()
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(tenggat_s(arguments))
        theirs.append(torch_s(arguments))
    for what, side in (("start to first step", 0), (f"whole job of {arguments.steps} steps", 1)):
        pairs = [(a[side], b[side]) for a, b in zip(ours, theirs)]
        ratios = sorted(a / b for a, b in pairs)
        print(f"{what}: tenggat {statistics.median(a for a, _ in pairs):.2f} s"
              f"   PyTorch {statistics.median(b for _, b in pairs):.2f} s"
              f"   ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side-of"]:
        torch_side(*sys.argv[2:])
    else:
        main()
