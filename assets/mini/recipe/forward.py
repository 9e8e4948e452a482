"""Lean training forwards over the weights of the stock modules: the same maths with real-valued rotary tables and the
prompt template's constant beginning computed once per batch. `check` compares them with the stock forwards."""
import torch
import torch.nn.functional as F


def rotary_tables(transformer, height, width, text):
    image, words = transformer.pos_embed([(1, height, width)], max_txt_seq_len=text, device=torch.device("cpu"))
    angles = torch.cat([words, image])[None, None]
    return (angles.real.repeat_interleave(2, -1).contiguous(), angles.imag.repeat_interleave(2, -1).contiguous())


def rotate(x, cos, sin):
    return x * cos + torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2) * sin


def rms(x, weight, eps=1e-6):
    return F.rms_norm(x.float(), (x.shape[-1],), weight, eps)


def heads(x, n):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def modulated(x, parameters):
    shift, scale, gate = parameters.unsqueeze(1).chunk(3, -1)
    return F.layer_norm(x, (x.shape[-1],), None, None, 1e-6) * (1 + scale) + shift, gate


def joined(x, *linears):
    return F.linear(x, torch.cat([m.weight for m in linears]), torch.cat([m.bias for m in linears]))


def block(b, x, c, condition, mask, cos, sin):
    words, a, n = c.shape[1], b.attn, b.num_attention_heads
    image1, image2 = b.img_mod[1](condition).chunk(2, -1)
    text1, text2 = b.txt_mod[1](condition).chunk(2, -1)
    xn, xg = modulated(x, image1)
    cn, cg = modulated(c, text1)
    q, k, v = (heads(z, n) for z in joined(xn, a.to_q, a.to_k, a.to_v).chunk(3, -1))
    cq, ck, cv = (heads(z, n) for z in joined(cn, a.add_q_proj, a.add_k_proj, a.add_v_proj).chunk(3, -1))
    q = rotate(torch.cat([rms(cq, a.norm_added_q.weight), rms(q, a.norm_q.weight)], 2), cos, sin)
    k = rotate(torch.cat([rms(ck, a.norm_added_k.weight), rms(k, a.norm_k.weight)], 2), cos, sin)
    v = torch.cat([cv, v], 2)
    o = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask).transpose(1, 2).flatten(2)
    x = x + xg * a.to_out[0](o[:, words:])
    c = c + cg * a.to_add_out(o[:, :words])
    xn, xg = modulated(x, image2)
    cn, cg = modulated(c, text2)
    return x + xg * b.img_mlp(xn), c + cg * b.txt_mlp(cn)


def velocity(transformer, x, text, mask, t, tables, run_block=block):
    """x [B, N, 64], text [B, T, J], mask [B, 1, 1, T + N] bool, t [B] in 0..1 -> [B, N, 64] float32."""
    x, c = transformer.img_in(x), transformer.txt_in(rms(text, transformer.txt_norm.weight))
    embed = transformer.time_text_embed
    condition = F.silu(embed.timestep_embedder(embed.time_proj(t)))
    for b in transformer.transformer_blocks:
        x, c = run_block(b, x, c, condition, mask, *tables)
    scale, shift = transformer.norm_out.linear(condition).unsqueeze(1).chunk(2, -1)
    x = F.layer_norm(x, (x.shape[-1],), None, None, 1e-6) * (1 + scale) + shift
    return transformer.proj_out(x).float()


def half_rotated(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def encode_text(encoder, prefix, suffix):
    """prefix [P]: the template's dropped beginning; suffix [B, S], padded right -> states of the suffix [B, S, D]."""
    model, config = encoder.model.language_model, encoder.config.text_config
    q_heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width, known, length = config.hidden_size // q_heads, len(prefix), suffix.shape[1]
    angles = torch.outer(torch.arange(known + length).float(), 1e6 ** (-torch.arange(0, width, 2).float() / width))
    angles = torch.cat([angles, angles], -1)[None, None]
    tables = [(a.cos(), a.sin()) for a in (angles[:, :, :known], angles[:, :, known:])]
    mask = torch.ones(length, known + length, dtype=torch.bool).tril(known)
    first, rest = model.embed_tokens(prefix)[None], model.embed_tokens(suffix)

    def repeated(z):
        return z.repeat_interleave(q_heads // kv_heads, 1)

    for layer in model.layers:
        a, qkv = layer.self_attn, []
        for z, (cos, sin) in zip((first, rest), tables):
            z = rms(z, layer.input_layernorm.weight)
            q, k, v = heads(a.q_proj(z), q_heads), heads(a.k_proj(z), kv_heads), heads(a.v_proj(z), kv_heads)
            qkv.append((half_rotated(q.float(), cos, sin).to(v.dtype), half_rotated(k.float(), cos, sin).to(v.dtype), v))
        (q0, k0, v0), (q1, k1, v1) = qkv
        o0 = F.scaled_dot_product_attention(q0, repeated(k0), repeated(v0), is_causal=True)
        k1, v1 = (torch.cat([head.expand(len(rest), -1, -1, -1), tail], 2) for head, tail in ((k0, k1), (v0, v1)))
        o1 = F.scaled_dot_product_attention(q1, repeated(k1), repeated(v1), attn_mask=mask)
        first = first + a.o_proj(o0.transpose(1, 2).flatten(2))
        rest = rest + a.o_proj(o1.transpose(1, 2).flatten(2))
        first, rest = (z + layer.mlp(rms(z, layer.post_attention_layernorm.weight)) for z in (first, rest))
    return rms(rest, model.norm.weight)


@torch.no_grad()
def check(encoder, transformer, prefix, suffix, lengths):
    """Largest differences to the stock text encoder and transformer on random input."""
    batch, length = suffix.shape
    kept = torch.arange(length) < lengths[:, None]
    ids = torch.cat([prefix.expand(batch, -1), suffix], 1)
    attended = torch.cat([torch.ones(batch, len(prefix), dtype=torch.long), kept.long()], 1)
    stock = encoder(input_ids=ids, attention_mask=attended, output_hidden_states=True).hidden_states[-1]
    mine = encode_text(encoder, prefix, suffix)
    words = ((stock[:, len(prefix):] - mine).abs() * kept[..., None]).max().item()
    x, t = torch.randn(batch, 64, 64), torch.rand(batch)
    stock = transformer(hidden_states=x, encoder_hidden_states=mine, encoder_hidden_states_mask=kept, timestep=t,
                        img_shapes=[[(1, 8, 8)]] * batch, return_dict=False)[0]
    mask = torch.cat([kept, torch.ones(batch, 64, dtype=torch.bool)], 1)[:, None, None]
    mine = velocity(transformer, x, mine, mask, t, rotary_tables(transformer, 8, 8, length))
    return words, (stock - mine).abs().max().item()
