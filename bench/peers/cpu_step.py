"""Seconds per LoRA training step on the CPU: tenggat against PyTorch (diffusers + peft), in turn.

Both sides train a Qwen-Image transformer with random weights of the same dimensions, dtype, rank and number of threads.
Each runs in a process of its own; they take turns, a few steps each, so that a busy neighbour meets both alike. A
step is noise, forward, loss, backward and AdamW on the LoRA of every layer of the blocks (tenggat also clips).

  dtype f32    everything in float32
  dtype bf16   frozen weights in bfloat16, LoRA in float32; PyTorch under torch.autocast(bfloat16)

Install:  pip install torch 'diffusers>=0.42' peft
Example:  cargo build --release -p tenggat-bench --bin cpu_step
          python bench/peers/cpu_step.py --dtype f32 --rounds 7
          python bench/peers/cpu_step.py --preset mini

Prints the median seconds of each side, the ratio with its spread over the rounds (tenggat / PyTorch, lower is
better), for wall-clock and for processor time, and the peak memory of both processes.
"""
import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

DIMENSIONS = dict(layers=6, heads=8, head_dim=64, joint_dim=256, height=16, width=16, text=64, batch=1, rank=16)
PRESETS = {
    "mid": {},
    "mini": dict(heads=3, joint_dim=128, height=8, width=8, text=12, batch=4),
}


def torch_side(options):
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = options["threads"]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import contextlib

    import torch
    from diffusers import QwenImageTransformer2DModel
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    o = {key: int(value) for key, value in options.items() if key != "dtype"}
    narrow = options["dtype"] == "bf16"
    torch.set_num_threads(o["threads"])
    torch.manual_seed(0)
    d = o["head_dim"]
    part = d // 8 * 2
    model = QwenImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=o["layers"], attention_head_dim=d,
        num_attention_heads=o["heads"], joint_attention_dim=o["joint_dim"],
        axes_dims_rope=(d - 2 * part, part, part))
    if narrow:
        model.bfloat16()
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=o["rank"], lora_alpha=o["rank"], target_modules=(
        r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|to_out\.0|to_add_out)"
        r"|img_mlp\.net\.(0\.proj|2)|txt_mlp\.net\.(0\.proj|2)|img_mod\.1|txt_mod\.1)")))
    lora = []
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            lora += [module.lora_A["default"].weight, module.lora_B["default"].weight]
    for parameter in lora:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    model.train()
    optimiser = torch.optim.AdamW(lora, lr=1e-5, weight_decay=0.01)
    dtype = torch.bfloat16 if narrow else torch.float32
    batch, tokens = o["batch"], o["height"] * o["width"]
    latents = torch.randn(batch, tokens, 64)
    text = torch.randn(batch, o["text"], o["joint_dim"]).to(dtype)
    mask = torch.ones(batch, o["text"], dtype=torch.bool) if batch > 1 else None
    shapes = [[(1, o["height"], o["width"])]] * batch

    def step():
        noise, sigma = torch.randn_like(latents), torch.full((batch,), 0.5)
        noisy = (0.5 * latents + 0.5 * noise).to(dtype)
        with torch.autocast("cpu", torch.bfloat16) if narrow else contextlib.nullcontext():
            prediction = model(
                hidden_states=noisy, timestep=sigma.to(dtype), encoder_hidden_states=text,
                encoder_hidden_states_mask=mask, img_shapes=shapes, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), noise - latents)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    step()
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        print(*(f"{t:.6f}" for t in times), flush=True)


class Side:
    def __init__(self, command, environment=None):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        if self.process.stdout.readline().strip() != "ready":
            sys.exit(f"{command[0]} did not start")
        self.wall, self.processor = [], []

    def processor_s(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def round(self, steps):
        before = self.processor_s()
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        times = [float(t) for t in self.process.stdout.readline().split()]
        if len(times) != steps:
            sys.exit("a side stopped early")
        self.wall.append(statistics.median(times))
        self.processor.append((self.processor_s() - before) / steps)

    def peak_mb(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def ratio(name, ours, theirs):
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    print(f"{name:<10} tenggat {statistics.median(ours) * 1e3:8.1f} ms   PyTorch {statistics.median(theirs) * 1e3:8.1f} ms"
          f"   ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="mid", help="mid: 6 x 512, 320 tokens; mini: the demo's model")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of a side before the other has its turn")
    parser.add_argument("--tenggat", default="target/release/cpu_step", help="the built program")
    parser.add_argument("--alone", action="store_true", help="tenggat's side only")
    for name, value in DIMENSIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default of mid: {value}")
    arguments = parser.parse_args()
    dimensions = DIMENSIONS | PRESETS[arguments.preset]
    dimensions |= {name: getattr(arguments, name) for name in DIMENSIONS if getattr(arguments, name) is not None}
    options = [f"{key}={value}" for key, value in dimensions.items()]
    options += [f"dtype={arguments.dtype}", f"threads={arguments.threads}"]
    print(" ".join(options), "load", os.getloadavg()[0])
    environment = os.environ | {"RAYON_NUM_THREADS": str(arguments.threads)}
    ours = Side([arguments.tenggat, *options], environment)
    theirs = None if arguments.alone else Side([sys.executable, __file__, "--side", *options])
    for _ in range(arguments.rounds):
        for side in filter(None, (ours, theirs)):
            side.round(arguments.steps)
    if theirs is None:
        print(f"wall-clock {statistics.median(ours.wall) * 1e3:.1f} ms, processor {statistics.median(ours.processor) * 1e3:.1f} ms,"
              f" peak memory {ours.peak_mb():.0f} MB")
    else:
        ratio("wall-clock", ours.wall, theirs.wall)
        ratio("processor", ours.processor, theirs.processor)
        a, b = ours.peak_mb(), theirs.peak_mb()
        print(f"peak memory tenggat {a:.0f} MB   PyTorch {b:.0f} MB   ratio {a / b:.3f}")
        theirs.stop()
    ours.stop()
    print("load", os.getloadavg()[0])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        torch_side(dict(argument.split("=", 1) for argument in sys.argv[2:]))
    else:
        main()
