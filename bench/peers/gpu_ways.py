"""One way to train a LoRA of the full-size model with PyTorch: builds it and measures its steps."""
import importlib.metadata
import platform
import statistics
import time

import gpu_base
import torch
from torch.nn import functional as F

TITLES = {
    "a": "bf16, eager, gradient checkpointing",
    "b": "bf16, compiled blocks",
    "c": "float8 products, compiled blocks, the faster recipe",
    "c-tensorwise": "float8 products, one scale a matrix, compiled blocks",
    "c-rowwise": "float8 products, one scale a row, compiled blocks",
    "d-uint3": "uint3 weights, float32 LoRA, as ai-toolkit",
    "d-float8": "float8 weights, float32 LoRA, as ai-toolkit",
}
LIBRARIES = ("torch", "triton", "diffusers", "peft", "torchao", "bitsandbytes", "transformers", "accelerate")
LR, CHECK_LR, CHECK_STEPS = 1e-4, 3e-3, 20
# A loss that has fallen by less than this over the steps of a check has not fallen.
FALL = 0.05
# Memory that stays free when blocks are chosen to keep their activations.
SPARE_BYTES = 2 << 30
# Blocks that keep their activations while what one of them keeps is measured.
PROBED = 3


class Way:
    def __init__(self, options):
        """`options`: the command line's, with `way` and `began` (time.time() before the process started)."""
        self.o = options
        self.way, self.device = options["way"], torch.device(options["device"])
        self.cuda = self.device.type == "cuda"
        self.compiled, self.quantised = self.way[0] in "bc", self.way[0] == "d"
        self.kept, self.growth = 0, []
        self.facts = {"way": self.way, "title": TITLES[self.way]}

    def build(self):
        if self.cuda and not torch.cuda.is_available():
            raise SystemExit("--device cuda: PyTorch sees no CUDA card here; --device cpu runs small models")
        if self.cuda and self.way[0] == "c" and torch.cuda.get_device_capability() < (8, 9):
            raise SystemExit(f"way {self.way}: float8 products need compute capability 8.9 or newer")
        if not self.cuda and self.way == "c-rowwise":
            raise SystemExit("way c-rowwise: needs a CUDA card; a processor has one scale a matrix only")
        o, dtype = self.o, torch.bfloat16
        torch.manual_seed(0)
        if self.cuda:
            self.facts["card"] = torch.cuda.get_device_name()
            torch.cuda.set_device(0)
            if not self.quantised:
                self.choose_attention()
        self.model = gpu_base.transformer(o["layers"], o["heads"], self.device, dtype, self.stored())
        self.indices = {id(block): i for i, block in enumerate(self.model.transformer_blocks)}
        lora_dtype = torch.float32 if self.quantised else dtype
        if self.quantised:
            self.lora = gpu_base.add_f32_lora(self.model, o["rank"], self.device)
        else:
            self.lora = gpu_base.add_peft_lora(self.model, o["rank"], self.device, dtype)
        self.facts["lora_dtype"] = str(lora_dtype).removeprefix("torch.")
        self.model.enable_gradient_checkpointing(gradient_checkpointing_func=self.run_block)
        if self.compiled:
            from torch._dynamo.utils import counters

            # What chose the recipe was compiled too.
            counters.clear()
            real_rotation(self.model)
            for block in self.model.transformer_blocks:
                block.compile()
        self.optimiser, self.facts["optimizer"] = self.choose_optimiser()
        side = o["resolution"] // 16
        self.shapes = [[(1, side, side)]]
        self.latents = torch.randn(1, side * side, gpu_base.IN_CHANNELS, device=self.device)
        self.text = torch.randn(1, o["text_tokens"], gpu_base.JOINT_DIM, device=self.device, dtype=dtype)
        self.synchronise()
        self.facts["load_s"] = time.time() - o["began"]

    def stored(self):
        """What brings matrices into the form that this way keeps them in."""
        if self.way == "d-uint3":
            return gpu_base.to_uint(3)
        if self.way == "d-float8":
            return gpu_base.to_float8_weights
        if self.way[0] == "c":
            self.facts["float8_recipe"] = self.way.partition("-")[2] or self.faster_recipe()
            return gpu_base.to_float8_products(self.facts["float8_recipe"])
        return lambda module: None

    def choose_optimiser(self):
        lora, lr = list(self.lora.values()), CHECK_LR if self.o["check"] else LR
        if self.quantised and self.cuda:
            try:
                from bitsandbytes.optim import AdamW8bit

                return AdamW8bit(lora, lr=lr, eps=1e-6), "AdamW8bit of bitsandbytes"
            except ImportError:
                name = "AdamW of torch, fused: bitsandbytes, whose 8-bit AdamW ai-toolkit takes, is missing"
        else:
            name = "AdamW of torch, fused" if self.cuda else "AdamW of torch"
        return torch.optim.AdamW(lora, lr=lr, fused=self.cuda or None), name

    def choose_attention(self):
        """Times each backend of attention on this shape and leaves the fastest switched on."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        tokens = (self.o["resolution"] // 16) ** 2 + self.o["text_tokens"]
        shape = (1, tokens, self.o["heads"], gpu_base.HEAD_DIM)
        packed = [torch.randn(shape, device=self.device, dtype=torch.bfloat16) for _ in range(4)]
        weight = packed.pop().transpose(1, 2)
        for operand in packed:
            operand.requires_grad_(True)

        def run():
            F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in packed)).backward(weight)

        times_ms = {}
        for name in ("cudnn", "flash", "efficient"):
            with sdpa_kernel(getattr(SDPBackend, f"{name.upper()}_ATTENTION")):
                times_ms[name] = timed_ms(run)
        chosen = fastest(times_ms)
        torch.backends.cuda.enable_cudnn_sdp(chosen == "cudnn")
        torch.backends.cuda.enable_flash_sdp(chosen == "flash")
        torch.backends.cuda.enable_mem_efficient_sdp(chosen == "efficient")
        torch.backends.cuda.enable_math_sdp(False)
        self.facts["attention"] = {"chosen": chosen, "forward_and_backward_ms": times_ms}

    def faster_recipe(self):
        """The float8 recipe that is faster on the first matrix of the image's MLP, compiled."""
        if not self.cuda:
            return "tensorwise"
        width, tokens, times_ms = self.o["heads"] * gpu_base.HEAD_DIM, (self.o["resolution"] // 16) ** 2, {}
        x = torch.randn(1, tokens, width, device=self.device, dtype=torch.bfloat16).requires_grad_(True)
        dy = torch.randn(1, tokens, 4 * width, device=self.device, dtype=torch.bfloat16)
        for recipe in ("tensorwise", "rowwise"):
            block = torch.nn.ModuleDict({"img_mlp": torch.nn.Sequential(torch.nn.Linear(width, 4 * width))})
            block.to(self.device, torch.bfloat16).requires_grad_(False)
            gpu_base.to_float8_products(recipe)(block)
            linear = torch.compile(block["img_mlp"])
            times_ms[recipe] = timed_ms(lambda linear=linear: linear(x).backward(dy))
        self.facts["float8_recipes_ms"] = times_ms
        return fastest(times_ms)

    def run_block(self, block, *inputs):
        """Runs a block; the first `kept` keep their activations, the others compute them again."""
        from torch.utils.checkpoint import checkpoint

        before = torch.cuda.memory_allocated() if self.cuda else 0
        if self.indices[id(block)] < self.kept:
            outputs = block(*inputs)
            if self.cuda:
                self.growth.append(torch.cuda.memory_allocated() - before)
        else:
            outputs = checkpoint(block, *inputs, use_reentrant=False)
        return outputs

    def loss(self, noise, sigma):
        noisy = ((1 - sigma) * self.latents + sigma * noise).bfloat16()
        prediction = self.model(
            hidden_states=noisy, timestep=sigma.bfloat16(), encoder_hidden_states=self.text,
            encoder_hidden_states_mask=None, img_shapes=self.shapes, return_dict=False)[0]
        return F.mse_loss(prediction.float(), noise - self.latents)

    def step(self):
        """A step of training; returns its loss, on the device."""
        loss = self.loss(torch.randn_like(self.latents), torch.rand(1, device=self.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.lora.values(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    def synchronise(self):
        if self.cuda:
            torch.cuda.synchronize()

    def first_step(self):
        self.step()
        self.synchronise()
        self.facts["first_step_s"] = time.time() - self.o["began"]

    def keep_what_fits(self):
        """Takes the first steps and lets as many blocks keep their activations as there is memory for.

        The first step has the compiler in it and makes the optimiser's moments; the second tells what is left
        and what a block keeps.
        """
        layers = self.o["layers"]
        if not self.compiled:
            self.first_step()
        elif self.o["kept_blocks"] is not None or not self.cuda:
            self.kept = layers if self.o["kept_blocks"] is None else self.o["kept_blocks"]
            self.first_step()
        else:
            self.kept = min(PROBED, layers)
            self.first_step()
            self.growth.clear()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            self.synchronise()
            free, total = torch.cuda.mem_get_info()
            others = total - free - torch.cuda.memory_reserved()
            left = total - others - SPARE_BYTES - torch.cuda.max_memory_allocated()
            more = max(0, int(left // max(1, *self.growth)))
            self.kept = min(layers, self.kept + more)
            self.facts["kept_bytes_per_block"] = max(self.growth)

    def warm_up(self):
        steps = self.o["warmup"]
        while steps > 0:
            try:
                self.step()
                self.synchronise()
                steps -= 1
            except torch.cuda.OutOfMemoryError:
                if not self.compiled or self.kept == 0 or self.o["kept_blocks"] is not None:
                    raise
                self.kept, steps = max(0, self.kept - PROBED), self.o["warmup"]
            self.optimiser.zero_grad(set_to_none=True)
            if self.cuda and steps == self.o["warmup"]:
                torch.cuda.empty_cache()

    def measure(self):
        self.build()
        self.keep_what_fits()
        self.warm_up()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        losses, marks = [], [self.mark()]
        for step in range(self.o["steps"]):
            losses.append(self.step())
            marks.append(self.mark())
            if self.cuda:
                # The host stays one step ahead and no more, so that it knows the time.
                marks[-2].synchronize()
            if step >= 2 and time.time() - self.o["began"] > self.o["seconds_per_way"]:
                break
        self.synchronise()
        steps_s = [self.between_s(a, b) for a, b in zip(marks, marks[1:])]
        self.facts |= {
            "step_s": {"median": statistics.median(steps_s), "min": min(steps_s), "max": max(steps_s)},
            "steps_s": steps_s,
            "losses": [loss.item() for loss in losses],
        }
        return self.result()

    def mark(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_s(self, a, b):
        return a.elapsed_time(b) / 1e3 if self.cuda else b - a

    def check(self):
        """Steps on one batch: every matrix that the loss depends on gets a gradient, and the loss falls."""
        self.build()
        if self.compiled:
            self.kept = self.o["layers"] if self.o["kept_blocks"] is None else self.o["kept_blocks"]
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(self.latents.shape, generator=generator).to(self.device)
        sigma, losses, reached = torch.full((1,), 0.5, device=self.device), [], set()
        for _ in range(CHECK_STEPS):
            loss = self.loss(noise, sigma)
            loss.backward()
            reached |= {name for name, p in self.lora.items() if p.grad is not None and p.grad.any()}
            torch.nn.utils.clip_grad_norm_(self.lora.values(), 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            losses.append(loss.item())
        # The last block's text leaves it by no way to the prediction.
        last = f"transformer_blocks.{self.o['layers'] - 1}."
        idle = tuple(last + name for name in ("txt_mlp.", "attn.to_add_out.", "attn.add_q_proj."))
        expected = {name for name in self.lora if not name.startswith(idle)}
        if len(self.lora) != 28 * self.o["layers"]:
            raise AssertionError(f"{len(self.lora)} LoRA matrices, expected {28 * self.o['layers']}")
        if reached != expected:
            raise AssertionError(f"matrices with gradients, more or fewer: {sorted(reached ^ expected)}")
        if not losses[-1] < (1 - FALL) * losses[0]:
            raise AssertionError(f"the loss did not fall over {CHECK_STEPS} steps on one batch: {losses}")
        self.facts |= {"check": "passed", "losses": losses, "lora_with_gradients": len(reached)}
        return self.result()

    def result(self):
        layers = self.o["layers"]
        for name in ("rank", "resolution", "text_tokens", "layers", "heads"):
            self.facts[name] = self.o[name]
        self.facts |= {"batch": 1, "image_tokens": self.latents.shape[1], "device": self.device.type,
                       "checkpointed_blocks": layers - self.kept, "libraries": libraries()}
        if self.compiled:
            from torch._dynamo.utils import counters

            self.facts["compiled_graphs"] = counters["stats"]["unique_graphs"]
        if self.cuda:
            self.facts["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
            self.facts["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
        return self.facts


def real_rotation(model):
    """Gives rotary embeddings as cosines and sines: the compiler fuses no complex numbers."""
    from diffusers.models.transformers import transformer_qwenimage

    complex_forward = model.pos_embed.forward

    def forward(*args, **named):
        return tuple(torch.view_as_real(turns) for turns in complex_forward(*args, **named))

    def rotate(x, turns, **_):
        cos, sin = (part[:, None] for part in turns.unbind(-1))
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)

    model.pos_embed.forward = forward
    transformer_qwenimage.apply_rotary_emb_qwen = rotate


def timed_ms(run, warm_up=3, times=7):
    """Median milliseconds of `run` on the card; what went wrong, if it cannot run."""
    took = []
    for i in range(warm_up + times):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        try:
            run()
        except RuntimeError as error:
            return str(error).partition("\n")[0]
        end.record()
        end.synchronize()
        if i >= warm_up:
            took.append(begin.elapsed_time(end))
    return statistics.median(took)


def fastest(times_ms):
    """The name with the least of the times; those that could not run count no more."""
    timed = {name: ms for name, ms in times_ms.items() if isinstance(ms, float)}
    if not timed:
        raise RuntimeError(f"nothing of this runs here: {times_ms}")
    return min(timed, key=timed.get)


def libraries():
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    if torch.backends.cudnn.is_available():
        versions["cudnn"] = torch.backends.cudnn.version()
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def run(options):
    way = Way(options)
    return way.check() if options["check"] else way.measure()
