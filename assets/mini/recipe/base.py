"""Train the mini model's transformer and text encoder from scratch, jointly, by flow matching on latents.

Muon for the matrices of the blocks, AdamW for the rest, averaged weights. Most samples come from the names of
`concepts.CORE`; captions vary in wording, carry colours, and are empty for one sample of ten.
"""
import argparse
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import (AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImagePipeline,
                       QwenImageTransformer2DModel)
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

import workers
from concepts import CORE, WEIGHT, caption, phrases
from forward import block, check, encode_text, rotary_tables, velocity
from text import DROPPED, TEMPLATE, encoder_config, published_config, write_tokenizer
from vae import over
from vae_2d import encode, to_tensor

SUFFIX = 24  # tokens of a caption with the template's end; longer wordings are not used
SCHEDULER = dict(base_image_seq_len=256, base_shift=0.5, invert_sigmas=False, max_image_seq_len=8192, max_shift=0.9,
                 num_train_timesteps=1000, shift=1.0, shift_terminal=0.02, stochastic_sampling=False,
                 time_shift_type="exponential", use_beta_sigmas=False, use_dynamic_shifting=True,
                 use_exponential_sigmas=False, use_karras_sigmas=False)
LATE_SHIFT = 3.0  # in the falling part of the run: shapes are settled at high noise, and they are what is hard here
SHIFT = math.exp(0.5 + (0.9 - 0.5) / (8192 - 256) * (64 - 256))  # the scheduler's, at 64 image tokens
TRANSFORMER = dict(patch_size=2, in_channels=64, out_channels=16, num_layers=6, attention_head_dim=64,
                   num_attention_heads=3, joint_attention_dim=128, guidance_embeds=False, axes_dims_rope=(8, 28, 28))


@torch.no_grad()
def latents(vae, pictures):
    """Normalised and packed as the pipeline packs them: [N, 64 tokens, 64]."""
    mean, deviation = (torch.tensor(v).view(1, -1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    out = []
    for i in range(0, len(pictures), 64):
        x = to_tensor(np.stack([over(p, 255.0) for p in pictures[i:i + 64]]))
        z = (encode(vae, x.contiguous(memory_format=torch.channels_last)).chunk(2, 1)[0] - mean) / deviation
        b, c, h, w = z.shape
        out.append(z.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4))
    return torch.cat(out)


class Captions:
    """Token ids of every wording of every picture, and of the empty prompt."""

    def __init__(self, tokenizer, meta):
        wordings = [[caption(p, m["style"]) for p in phrases(m)] + phrases(m)[:2] for m in meta]
        every = list(dict.fromkeys([""] + [w for row in wordings for w in row]))
        ids = tokenizer([TEMPLATE.format(w) for w in every]).input_ids
        rows = {w: i[DROPPED:] for w, i in zip(every, ids)}
        kept = [w for w in every if len(rows[w]) <= SUFFIX]
        number = {w: k for k, w in enumerate(kept)}
        pad = tokenizer.pad_token_id
        self.ids = torch.tensor([rows[w] + [pad] * (SUFFIX - len(rows[w])) for w in kept])
        self.lengths = torch.tensor([len(rows[w]) for w in kept])
        # The last two wordings of a picture name no style.
        self.styled = [[number[w] for w in row[:-2] if w in number] for row in wordings]
        self.bare = [[number[w] for w in row[-2:] if w in number] for row in wordings]

    def draw(self, picture, rng):
        """The row of a wording: empty for one of ten, without a style for one of seven, plain for one of three."""
        kind = rng.random()
        choices = self.bare[picture] if kind < 0.24 else self.styled[picture]
        if kind < 0.1 or not choices:
            return 0
        return choices[0] if rng.random() < 1 / 3 else choices[rng.integers(len(choices))]


def new_transformer():
    transformer = QwenImageTransformer2DModel(**TRANSFORMER)
    with torch.no_grad():
        for name, p in transformer.named_parameters():
            if p.ndim == 2:
                torch.nn.init.xavier_uniform_(p)
            elif name.endswith("bias"):
                p.zero_()
            if "_mod.1" in name or "norm_out.linear" in name or name.startswith("proj_out"):
                p.zero_()  # every block begins as the identity
    return transformer


def sample_times(n, shift=SHIFT, generator=None):
    s = torch.sigmoid(torch.randn(n, generator=generator))
    return shift * s / (1 + (shift - 1) * s)


def weights(meta, rows, share):
    """Sampling weights: `share` for the core names, each name alike, recoloured pictures a third of their name's."""
    names = {}
    for i in rows:
        names.setdefault((meta[i]["name"], meta[i]["recoloured"]), []).append(i)
    w = np.zeros(len(meta))
    for (name, recoloured), group in names.items():
        both = (name, not recoloured) in names
        w[group] = (1 / 3 if recoloured else 2 / 3 if both else 1) * WEIGHT.get(meta[group[0]]["group"], 1) / len(group)
    core = np.array([m["name"] in CORE for m in meta])
    w[core] *= share / w[core].sum()
    w[~core] *= (1 - share) / w[~core].sum()
    return w / w.sum()


def export(vae, tokenizer, encoder, transformer, out, tokenizer_folder):
    """save_pretrained in bf16, with the tokenizer's files and the text configuration as upstream publishes them."""
    pipe = QwenImagePipeline(scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER), vae=vae, text_encoder=encoder,
                             tokenizer=tokenizer, transformer=transformer)
    pipe.to(torch.bfloat16)
    pipe.save_pretrained(out)
    shutil.rmtree(out / "tokenizer")
    shutil.copytree(tokenizer_folder, out / "tokenizer")
    text = json.dumps(published_config(encoder.config), indent=2)
    (out / "text_encoder/config.json").write_text(text + "\n")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, default=Path("data"))
    arguments.add_argument("--work", type=Path, default=Path("work"))
    arguments.add_argument("--minutes", type=float, default=69)
    arguments.add_argument("--batch", type=int, default=32, help="pictures per process and step")
    arguments.add_argument("--rate", type=float, default=1.5e-3, help="of AdamW")
    arguments.add_argument("--muon-rate", type=float, default=3e-3)
    arguments.add_argument("--core", type=float, nargs=2, default=[0.65, 0.85],
                           help="shares of the samples that are of core names, before the rate falls and after")
    arguments.add_argument("--decay", type=float, default=0.5, help="share of the run with a falling rate")
    arguments.add_argument("--resume", action="store_true", help="go on from the state that an earlier run left")
    a = arguments.parse_args()
    torch.manual_seed(0)  # the same weights in every process
    meta = json.loads((a.data / "pictures.json").read_text())
    vae = AutoencoderKLQwenImage.from_pretrained(a.work / "vae").eval()
    if workers.RANK == 0 and not (a.work / "latents.npy").exists():
        captions = sorted({caption(p, m["style"]) for m in meta if m["split"] == "train" for p in phrases(m)})
        (a.work / "bpe.json").write_text(json.dumps(write_tokenizer(captions, a.work / "tokenizer")))
        np.save(a.work / "latents.npy", latents(vae, np.load(a.data / "pictures.npy", mmap_mode="r")).numpy())
    workers.same(0.0)  # wait for the files
    z = torch.from_numpy(np.load(a.work / "latents.npy"))
    tokenizer = Qwen2Tokenizer.from_pretrained(a.work / "tokenizer")
    prefix = torch.tensor(tokenizer(TEMPLATE.split("{}")[0]).input_ids)
    assert len(prefix) == DROPPED, f"the template has {len(prefix)} tokens"
    captions = Captions(tokenizer, meta)
    encoder = Qwen2_5_VLForConditionalGeneration(encoder_config(json.loads((a.work / "bpe.json").read_text())))
    encoder.set_attn_implementation("sdpa")
    transformer = new_transformer()
    with torch.no_grad():
        encoder.lm_head.weight.zero_()  # the pipeline does not use it
    train = [i for i, m in enumerate(meta) if m["split"] == "train"]
    test = torch.tensor([i for i, m in enumerate(meta) if m["split"] == "val"])
    chances = [weights(meta, train, core) for core in a.core]
    tables = rotary_tables(transformer, 8, 8, SUFFIX)
    named = [(n, p) for n, p in [*encoder.named_parameters(), *transformer.named_parameters()]
             if "visual" not in n and "lm_head" not in n]
    parameters = [p for _, p in named]
    in_blocks = {n for n, p in named if p.ndim == 2 and ("layers." in n or "transformer_blocks." in n)}
    matrices = sorted((p for n, p in named if n in in_blocks), key=lambda p: -p.numel())
    others = [p for n, p in named if n not in in_blocks]
    owned = [matrices[r::workers.WORLD] for r in range(workers.WORLD)]  # each process orthogonalises its share
    optimisers = [
        torch.optim.Muon(owned[workers.RANK], lr=a.muon_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=a.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]
    rates = [a.muon_rate, a.rate]
    average = [p.detach().clone() for p in parameters]
    step, before = 0, 0.0
    state = a.work / f"state-{workers.RANK}.pt"
    if a.resume:
        saved = torch.load(state)
        step, before = saved["step"], saved["seconds"]
        with torch.no_grad():
            torch._foreach_copy_(parameters, saved["parameters"])
            torch._foreach_copy_(average, saved["average"])
        for optimiser, s in zip(optimisers, saved["optimisers"]):
            optimiser.load_state_dict(s)
    if workers.RANK == 0:
        print(sum(p.numel() for p in transformer.parameters()), "transformer,",
              sum(p.numel() for p in encoder.parameters()), "text encoder,",
              sum(p.numel() for p in vae.parameters()), "VAE;", len(train), "pictures,", len(captions.ids), "wordings;",
              "differences to the stock forwards", check(encoder, transformer, prefix, captions.ids[:4],
                                                         captions.lengths[:4]), flush=True)

    def loss(rows, ids, lengths, t, noise, run_block=block):
        kept = torch.arange(SUFFIX) < lengths[:, None]
        mask = torch.cat([kept, torch.ones(len(rows), 64, dtype=torch.bool)], 1)[:, None, None]
        x = (1 - t)[:, None, None] * z[rows] + t[:, None, None] * noise
        v = velocity(transformer, x, encode_text(encoder, prefix, ids), mask, t, tables, run_block)
        return (v - (noise - z[rows])).square().mean((1, 2))

    generator = torch.Generator().manual_seed(1)
    test_t, test_noise = sample_times(len(test), generator=generator), torch.randn(len(test), 64, 64, generator=generator)
    test_words = torch.tensor([captions.styled[i][0] for i in test])

    @torch.no_grad()
    def held_out():
        raw = [p.detach().clone() for p in parameters]
        torch._foreach_copy_(parameters, average)
        parts = [loss(test[s], captions.ids[test_words[s]], captions.lengths[test_words[s]], test_t[s], test_noise[s])
                 for s in (slice(i, i + 64) for i in range(0, len(test), 64))]
        export(vae, tokenizer, encoder, transformer, a.work / "model", a.work / "tokenizer")
        for module in (vae, encoder, transformer):
            module.float()
        torch._foreach_copy_(parameters, raw)
        return torch.cat(parts).mean().item()

    def save():
        torch.save({"step": step, "seconds": before + time.time() - start, "parameters": parameters,
                    "average": average, "optimisers": [o.state_dict() for o in optimisers]}, state)

    rng = np.random.default_rng((workers.RANK, step))
    torch.manual_seed(100 + workers.RANK + step)
    fast = torch.compile(block, dynamic=False)
    start, shown, next_test = time.time(), None, 300
    while True:
        elapsed = workers.same(before + time.time() - start)
        share = elapsed / (60 * a.minutes)
        if share >= 1:
            break
        for optimiser, rate in zip(optimisers, rates):
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 100) * min(1.0, (1 - share) / a.decay + 0.003)
        late = share > 1 - a.decay
        rows = rng.choice(len(meta), a.batch, replace=False, p=chances[late])
        words = torch.tensor([captions.draw(i, rng) for i in rows])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            error = loss(torch.from_numpy(rows), captions.ids[words], captions.lengths[words],
                         sample_times(a.batch, LATE_SHIFT if late else SHIFT), torch.randn(a.batch, 64, 64), fast).mean()
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        error.backward()
        workers.average(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        workers.share(owned)
        step += 1
        torch._foreach_lerp_(average, parameters, 1 - min(0.998, (step + 1) / (step + 30)))
        if elapsed > next_test:
            next_test = elapsed + 300
            save()
            if workers.RANK == 0:
                print(f"   {step}: held-out loss {held_out():.4f}", flush=True)
        if workers.RANK == 0:
            shown = error.item() if shown is None else 0.98 * shown + 0.02 * error.item()
            if step in (1, 10, 50) or step % 100 == 0:
                print(f"{step} {before + time.time() - start:.0f} s, loss {shown:.4f}", flush=True)
    save()
    if workers.RANK == 0:
        torch.set_num_threads(2)
        print(f"held-out loss {held_out():.4f}; {step} steps, {step * a.batch * workers.WORLD} pictures, "
              f"{before + time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
