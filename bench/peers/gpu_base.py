"""The frozen Qwen-Image transformer with random weights, in the forms that PyTorch trainers keep it in.

A block is made on the device, brought into its stored form and only then followed by the next, so that the
whole is never larger than it is stored, and nothing of it is ever in the host's memory.
"""
import dataclasses
import math
import re

import torch
from cpu_start import TARGETS
from torch import nn
from torch.nn import functional as F

HEAD_DIM = 128
JOINT_DIM = 3584
IN_CHANNELS = 64
AXES = (16, 56, 56)
# Standard deviation of random matrices: activations keep their size over 60 blocks.
DEVIATION = 0.02
GROUP = 64


def transformer(layers, heads, device, dtype, stored=lambda module: None):
    """The model in `dtype`, frozen; `stored` brings a module's matrices into another form, in place."""
    from diffusers import QwenImageTransformer2DModel, logging
    from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

    logging.set_verbosity_error()
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(
            patch_size=2, in_channels=IN_CHANNELS, out_channels=IN_CHANNELS // 4, num_layers=layers,
            attention_head_dim=HEAD_DIM, num_attention_heads=heads, joint_attention_dim=JOINT_DIM,
            axes_dims_rope=AXES)
    model.to(dtype).requires_grad_(False)
    # Its tables are no buffers, so that they would stay on `meta`.
    model.pos_embed = QwenEmbedRope(theta=10000, axes_dim=list(AXES), scale_rope=True)
    others = [child for name, child in model.named_children() if name != "transformer_blocks"]
    for module in (*model.transformer_blocks, *others):
        module.to_empty(device=device)
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, DEVIATION)
            else:
                parameter.data.fill_(1 if name.endswith("weight") else 0)
        stored(module)
    return model.train()


def targets(model):
    """Names of the 14 linears of every block."""
    return [name for name, _ in model.named_modules() if re.fullmatch(TARGETS, name)]


def replace(model, name, module):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def add_peft_lora(model, rank, device, dtype):
    """LoRA of peft on the targets, alpha = rank; returns its matrices."""
    from peft import LoraConfig

    with torch.device(device):
        model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    lora = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    for parameter in lora.values():
        parameter.data = parameter.data.to(device, dtype)
        parameter.requires_grad_(True)
    return lora


class F32Lora(nn.Module):
    """A frozen linear and a LoRA beside it that computes in true float32, as ai-toolkit has it (scale 1)."""

    def __init__(self, linear, shape, rank, device):
        super().__init__()
        self.linear = linear
        self.lora_a = nn.Parameter(torch.empty(rank, shape[1], device=device))
        self.lora_b = nn.Parameter(torch.zeros(shape[0], rank, device=device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x):
        y = self.linear(x)
        return y + F.linear(F.linear(x.float(), self.lora_a), self.lora_b).to(y.dtype)


def add_f32_lora(model, rank, device):
    """`F32Lora` on the targets; returns its matrices."""
    for name in targets(model):
        linear = model.get_submodule(name)
        shape = (linear.out_features, linear.in_features)
        replace(model, name, F32Lora(linear, shape, rank, device))
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


class UintLinear(nn.Module):
    """A frozen linear in `bits` bits, whole again in every forward pass.

    Groups of 64 along the inputs, asymmetric, all arithmetic in the weight's own dtype: what ai-toolkit's
    uint2 to uint7 compute. Codes lie in planes of 4, 2 and 1 bits, so that a few element-wise kernels unpack
    them.
    """

    def __init__(self, linear, bits):
        super().__init__()
        weight, most = linear.weight.data, 2**bits - 1
        self.out_features, self.in_features = weight.shape
        self.bits, self.dtype = bits, weight.dtype
        self.bias = linear.bias
        groups = weight.unflatten(1, (-1, GROUP))
        low, high = groups.amin(2, keepdim=True).clamp(max=0), groups.amax(2, keepdim=True).clamp(min=0)
        scale = ((high - low) / most).clamp(min=torch.finfo(torch.float32).eps)
        zero = (-torch.round(low / scale)).clamp(0, most)
        codes = (torch.round(groups * (1 / scale)) + zero).clamp(0, most).to(torch.uint8).flatten()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero.to(torch.uint8))
        self.planes = [width for width in (4, 2, 1) if bits & width]
        for width in self.planes:
            part = (codes >> (bits & (width - 1))) & (2**width - 1)
            shares = part.view(8 // width, -1)
            packed = sum(share << (width * i) for i, share in enumerate(shares))
            self.register_buffer(f"plane{width}", packed.to(torch.uint8))

    @torch.no_grad()
    def weight(self):
        """The matrix in its own dtype, [out, in]."""
        codes = None
        for width in self.planes:
            plane = getattr(self, f"plane{width}")
            shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=plane.device)
            part = (plane >> shifts[:, None]).bitwise_and_(2**width - 1).view(-1)
            part <<= self.bits & (width - 1)
            codes = part if codes is None else codes.bitwise_or_(part)
        values = codes.view(self.out_features, -1, GROUP).to(self.dtype)
        values -= self.zero.to(self.dtype)
        values *= self.scale
        return values.view(self.out_features, self.in_features)

    def forward(self, x):
        return F.linear(x, self.weight(), self.bias)


def to_uint(bits):
    """Brings every linear of a module into `UintLinear`; those whose inputs are not whole groups stay."""

    def stored(module):
        for name, linear in list(module.named_modules()):
            if isinstance(linear, nn.Linear) and name and linear.in_features % GROUP == 0:
                replace(module, name, UintLinear(linear, bits))

    return stored


def to_float8_weights(module):
    """torchao's float8 weights: one scale a row, a whole matrix again in every product."""
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    quantize_(module, Float8WeightOnlyConfig())
    module.requires_grad_(False)


def to_float8_products(recipe):
    """torchao's float8 products for the linears of the blocks, in forward and input gradient.

    The modulation's linears stay in bf16: they have one row, so that casting their weights would cost more
    than it saves. Products for weight gradients stay in high precision: frozen weights have none, so that the
    compiler drops them, and with float8 there the number of tokens would have to be a multiple of 16.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.config import CastConfig, ScalingType

    config = Float8LinearConfig.from_recipe_name(recipe)
    config = dataclasses.replace(
        config,
        cast_config_input_for_grad_weight=CastConfig(
            scaling_type=ScalingType.DISABLED, target_dtype=config.cast_config_input.target_dtype),
        cast_config_grad_output_for_grad_weight=CastConfig(
            scaling_type=ScalingType.DISABLED, target_dtype=config.cast_config_grad_output.target_dtype))

    def stored(module):
        convert_to_float8_training(
            module, config=config,
            module_filter_fn=lambda linear, name: name.startswith(("attn.", "img_mlp.", "txt_mlp.")))
        module.requires_grad_(False)

    return stored
