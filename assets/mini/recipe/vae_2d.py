"""AutoencoderKLQwenImage on single frames, as 2-D convolutions over the same weights.

For one frame a causal 3x3x3 convolution sees its last temporal slice only, so the others stay zero. Several times
faster than the stock forward on a CPU; `vae.py` measures its result with the stock one.
"""
import torch
import torch.nn.functional as F


def to_tensor(pictures):
    """[N, H, W, 3] uint8 -> [N, 3, H, W] in -1..1."""
    return torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def conv(module, x):
    if module.weight.ndim == 5:
        return F.conv2d(x, module.weight[:, :, -1], module.bias, padding=(module._padding[2], module._padding[0]))
    return module(x)


def rows_norm_silu(rows, gain):
    y = rows.float()
    return F.silu(y * torch.rsqrt(y.square().sum(1, keepdim=True) + 1e-12) * gain).to(rows.dtype)


_compiled = torch.compile(rows_norm_silu, dynamic=True)


def norm_silu(module, x):
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, c)  # a view of channels_last memory
    torch._dynamo.mark_static(rows, 1)
    return _compiled(rows, module.scale * module.gamma.reshape(-1)).reshape(b, h, w, c).permute(0, 3, 1, 2)


def norm(module, x):
    root = torch.rsqrt(x.float().square().sum(1, keepdim=True) + 1e-12).to(x.dtype)
    return x * root * (module.scale * module.gamma.reshape(1, -1, 1, 1)).to(x.dtype)


def residual(module, x):
    skip = conv(module.conv_shortcut, x) if hasattr(module.conv_shortcut, "weight") else x
    return skip + conv(module.conv2, norm_silu(module.norm2, conv(module.conv1, norm_silu(module.norm1, x))))


def attention(module, x):
    b, c, h, w = x.shape
    qkv = module.to_qkv(norm(module.norm, x)).reshape(b, 1, 3 * c, h * w).transpose(2, 3)
    out = F.scaled_dot_product_attention(*qkv.chunk(3, -1))
    return x + module.proj(out.squeeze(1).transpose(1, 2).reshape(b, c, h, w))


def middle(module, x):
    return residual(module.resnets[1], attention(module.attentions[0], residual(module.resnets[0], x)))


def encode(vae, x):
    """[N, 3, H, W] -> mean and log variance, [N, 2 z, H / 8, W / 8]."""
    e = vae.encoder
    x = conv(e.conv_in, x)
    for block in e.down_blocks:
        x = block.resample(x) if hasattr(block, "resample") else residual(block, x)
    return conv(vae.quant_conv, conv(e.conv_out, norm_silu(e.norm_out, middle(e.mid_block, x))))


def decode(vae, z):
    """[N, z, H / 8, W / 8] -> [N, 3, H, W], not clamped."""
    d = vae.decoder
    x = middle(d.mid_block, conv(d.conv_in, conv(vae.post_quant_conv, z)))
    for block in d.up_blocks:
        for module in block.resnets:
            x = residual(module, x)
        if block.upsamplers is not None:
            x = block.upsamplers[0].resample[1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return conv(d.conv_out, norm_silu(d.norm_out, x))
