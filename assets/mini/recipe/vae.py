"""Train the mini model's AutoencoderKLQwenImage from scratch on the pictures of `prepare.py`.

Crops first, whole pictures later. Backgrounds and colours are varied, so that a LoRA's pictures need not be on white.
The loss has the logarithm of each picture's squared error (that is: its PSNR), the absolute error, and the error of the
differences between neighbours, which keeps outlines sharp.
"""
import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage

import workers
from vae_2d import decode, encode, to_tensor

CONFIG = dict(base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True])


@torch.no_grad()
def initialise(vae):
    for module in vae.modules():
        w = getattr(module, "weight", None)
        if w is not None and w.ndim >= 4:  # fan-in of the slice that is used
            w.normal_(0, 1 / math.sqrt(w.shape[1] * w.shape[-1] * w.shape[-2]))
            if w.ndim == 5 and w.shape[2] > 1:
                w[:, :, :-1].zero_()
            module.bias.zero_()
    for module in vae.modules():
        if hasattr(module, "conv2"):
            module.conv2.weight.mul_(0.3)
    for name, parameter in vae.named_parameters():
        if "time_conv" in name:
            parameter.zero_()


def over(rgba, background):
    """Alpha composition, float32 [H, W, 4] over [.., 3] -> uint8 [H, W, 3]."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + background * (1 - alpha) + 0.5).astype(np.uint8)


def varied(rgba, rng):
    """A picture on white (six of ten) or on a plain or graded colour; one of six has its channels mixed."""
    size = rgba.shape[0]
    background = np.full(3, 255, np.float32)
    if rng.random() < 0.4:
        background = rng.uniform(0, 255, 3).astype(np.float32) * rng.choice([0.3, 1.0])
        if rng.random() < 0.5:
            ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
            background = background * ramp + rng.uniform(0, 255, 3).astype(np.float32) * (1 - ramp)
    picture = over(rgba, background)
    if rng.random() < 1 / 6:
        picture = picture[..., rng.permutation(3)]
        if rng.random() < 0.5:
            picture = 255 - picture
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def losses(vae, x, noise, half):
    mean, log_variance = encode(vae, x).float().chunk(2, 1)
    log_variance = log_variance.clamp(-20, 5)
    z = mean + torch.exp(0.5 * log_variance) * noise
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    if half:  # a latent shrunk by two decodes to the picture shrunk by two: this keeps latents smooth
        z, x = F.avg_pool2d(z, 2), F.avg_pool2d(x, 2)
    d = decode(vae, z.to(x.dtype)).float() - x
    edges = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    square = d.square().mean((1, 2, 3))
    return square, d.abs().mean(), edges, divergence


@torch.no_grad()
def psnr(vae, pictures, batch=16):
    """Mean over the pictures of the PSNR after the stock encode and decode, dB."""
    out = []
    for i in range(0, len(pictures), batch):
        x = to_tensor(pictures[i:i + batch])
        y = vae.decode(vae.encode(x[:, :, None]).latent_dist.mode()).sample[:, :, 0]
        out += [10 * math.log10(4 / e) for e in (y - x).square().mean((1, 2, 3)).clamp(min=1e-8).tolist()]
    return sum(out) / len(out)


@torch.no_grad()
def save(vae, parameters, average, train, test, out):
    """Writes the averaged weights with the latents' mean and deviation, and returns the held-out PSNR."""
    raw = [p.detach().clone() for p in parameters]
    torch._foreach_copy_(parameters, average)
    z = torch.cat([encode(vae, to_tensor(train[i:i + 64]).contiguous(memory_format=torch.channels_last)).chunk(2, 1)[0]
                   for i in range(0, len(train), 64)])
    vae.register_to_config(latents_mean=[round(v, 4) for v in z.mean((0, 2, 3)).tolist()],
                           latents_std=[round(v, 4) for v in z.std((0, 2, 3)).tolist()])
    vae.save_pretrained(out)
    result = psnr(vae, test)
    torch._foreach_copy_(parameters, raw)
    return result


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, default=Path("data"))
    arguments.add_argument("--out", type=Path, default=Path("work/vae"))
    arguments.add_argument("--minutes", type=float, default=31)
    arguments.add_argument("--batch", type=int, default=16, help="crops of 64 x 64 per process and step")
    arguments.add_argument("--whole-from", type=float, default=0.5, help="share of the run made on crops")
    arguments.add_argument("--rate", type=float, default=2e-3)
    arguments.add_argument("--divergence", type=float, default=2e-4)
    a = arguments.parse_args()
    torch.manual_seed(0)  # the same weights in every process
    vae = AutoencoderKLQwenImage(**CONFIG)
    initialise(vae)
    rng = np.random.default_rng(workers.RANK)
    torch.manual_seed(100 + workers.RANK)
    pictures = np.load(a.data / "pictures.npy", mmap_mode="r")
    meta = json.loads((a.data / "pictures.json").read_text())
    train = np.array([i for i, m in enumerate(meta) if m["split"] == "train"])
    test = np.stack([over(pictures[i], 255.0) for i, m in enumerate(meta) if m["split"] == "val"])
    sample = np.stack([over(pictures[i], 255.0) for i in train[:: len(train) // 1024]])
    parameters = [p for n, p in vae.named_parameters() if "time_conv" not in n]
    optimiser = torch.optim.AdamW(parameters, lr=a.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = [p.detach().clone() for p in parameters]
    start, step, shown = time.time(), 0, None
    while True:
        share = workers.same((time.time() - start) / (60 * a.minutes))
        if share >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = a.rate * min(1, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        size, batch = (128, max(1, a.batch // 4)) if share >= a.whole_from else (64, a.batch)
        x = np.empty((batch, size, size, 3), np.uint8)
        for j, i in enumerate(rng.choice(train, batch)):
            top, left = rng.integers(0, (128 - size) // 8 + 1, 2) * 8
            x[j] = varied(pictures[i, top:top + size, left:left + size], rng)
        x = to_tensor(x).contiguous(memory_format=torch.channels_last)
        half = step % 6 == 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            square, absolute, edges, divergence = losses(vae, x, torch.randn(batch, 16, size // 8, size // 8), half)
        decibel = torch.log(square + 2e-4).mean()
        loss = (0.25 if half else 1.0) * (0.03 * decibel + absolute + 0.5 * edges) + a.divergence * divergence
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        workers.average(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        torch._foreach_lerp_(average, parameters, 1 - min(0.999, (step + 1) / (step + 20)))
        step += 1
        if workers.RANK or half:
            continue
        now = [square.mean().item(), absolute.item(), edges.item(), divergence.item()]
        shown = now if shown is None else [0.97 * s + 0.03 * n for s, n in zip(shown, now)]
        if step in (1, 20, 100) or step % 300 == 0:
            print(f"{step} {time.time() - start:.0f} s, {10 * math.log10(4 / shown[0]):.2f} dB of all, "
                  f"absolute {shown[1]:.4f}, edges {shown[2]:.4f}, divergence {shown[3]:.3f}", flush=True)
        if step % 1500 == 0:
            print(f"   held out: {save(vae, parameters, average, sample, test[::5], a.out):.2f} dB", flush=True)
    if workers.RANK == 0:
        torch.set_num_threads(2)
        print(f"held out: {save(vae, parameters, average, sample, test, a.out):.2f} dB; {step} steps, "
              f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
