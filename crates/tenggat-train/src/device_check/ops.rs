//! Every op that training runs, on the device and on the CPU in f64.

use tenggat_models::Result;
use tenggat_tensor::ops::{
    adafactor, adamw, attention, causal_attention, conv2d, copy, embedding, flow, gated_residual, gelu, gemm,
    guidance, kronecker, layer_norm_modulate, linear::Write, lion, loss, rms_norm, rms_norm_rope, rotary,
    scale_shift, silu, swiglu,
};
use tenggat_tensor::{DType, Device, Tensor};

use super::place::{Place, largest_error};

/// Computes some tensors from the same numbers at any place.
type Op = fn(&Place<'_>) -> Result<Vec<Tensor>>;

/// Ops by name, with the largest relative error in bf16: two roundings to 8 bits, and more where rounded
/// results enter others.
const OPS: [(&str, f64, Op); 19] = [
    ("products", 8e-3, products),
    ("attention", 16e-3, attention),
    ("causal attention", 8e-3, causal),
    ("rms norm and rope", 8e-3, norm_and_rope),
    ("layer norm", 8e-3, layer_norm),
    ("gated residual", 8e-3, gated),
    ("activations", 8e-3, activations),
    ("rms norm", 8e-3, norm),
    ("rotary", 8e-3, turned),
    ("scale and shift", 8e-3, scaled),
    ("embedding", 8e-3, embedded),
    ("copies", 12e-3, copies), // three roundings, one after the other
    ("kronecker products", 8e-3, kroneckers),
    ("convolution", 8e-3, convolved),
    ("noise and target", 8e-3, noised),
    ("loss", 8e-3, losses),
    ("guidance", 8e-3, guided),
    ("adamw and lion", 8e-3, optimisers),
    ("adafactor", 8e-3, factored),
];

/// Names of all ops.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OPS.iter().map(|&(name, ..)| name)
}

/// Largest error of an op on the device in a type, and the largest that is right: 1e-5 in f32.
///
/// # Errors
/// The op failed.
pub(super) fn compare(device: &Device, dtype: DType, name: &str) -> Result<(f64, f64)> {
    let found = OPS.iter().find(|(of, ..)| *of == name);
    let &(_, limit, op) = found.expect("a name of the table");
    let cpu = Device::cpu();
    let expected = op(&Place { device: &cpu, dtype: DType::F64 })?;
    let got = op(&Place { device, dtype })?;
    let errors = got.iter().zip(&expected).map(|(got, expected)| largest_error(got, expected));
    let largest = errors.collect::<Result<Vec<f64>>>()?.into_iter().fold(0.0, f64::max);
    Ok((largest, if dtype == DType::F32 { 1e-5 } else { limit }))
}

/// Rows and channels of most ops: rows are no multiple of any tile.
const ROWS: usize = 70;
const CHANNELS: usize = 256;

fn products(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (m, n, k) = (ROWS, 48, CHANNELS);
    let mut all = [on.empty(&[m, n])?, on.empty(&[m, n])?, on.empty(&[m, n])?];
    let [nn, nt, tn] = &mut all;
    gemm::nn(0.5, on.numbers(&[m, k], 1)?.view(), on.numbers(&[k, n], 2)?.view(), 0.0, nn.view_mut())?;
    gemm::nt(1.0, on.numbers(&[m, k], 1)?.view(), on.numbers(&[n, k], 2)?.view(), 0.0, nt.view_mut())?;
    copy::forward(nt.view(), tn.view_mut())?;
    gemm::tn(1.0, on.numbers(&[k, m], 1)?.view(), on.numbers(&[k, n], 2)?.view(), 0.0, tn.view_mut())?;
    Ok(all.into())
}

fn attention(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (lens, tokens, heads, d) = ([ROWS, 33], ROWS, 2, 128);
    let shape = [lens.len() * tokens, heads * d];
    let scale = 1.0 / (d as f64).sqrt();
    let layout =
        attention::Layout { key_lens: &lens, device_lens: None, tokens, heads, scale, bf16_products: false };
    let [q, k, v, d_o] =
        [on.numbers(&shape, 1)?, on.numbers(&shape, 2)?, on.numbers(&shape, 3)?, on.numbers(&shape, 4)?];
    let (mut o, mut lse) = (on.empty(&shape)?, on.empty_wide(&[shape[0], heads])?);
    attention::forward(q.view(), k.view(), v.view(), layout, o.view_mut(), lse.view_mut())?;
    let [mut dq, mut dk, mut dv] = [on.empty(&shape)?, on.empty(&shape)?, on.empty(&shape)?];
    let saved = attention::Saved { q: q.view(), k: k.view(), v: v.view(), o: o.view(), lse: lse.view() };
    attention::backward(saved, layout, d_o.view(), dq.view_mut(), dk.view_mut(), dv.view_mut())?;
    Ok(vec![o, dq, dk, dv])
}

fn causal(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (lens, heads, kv_heads, d) = ([37, 1, 19], 4, 2, 64);
    let rows = lens.iter().sum();
    let [q, k, v] = [
        on.numbers(&[rows, heads * d], 1)?,
        on.numbers(&[rows, kv_heads * d], 2)?,
        on.numbers(&[rows, kv_heads * d], 3)?,
    ];
    let mut o = on.empty(&[rows, heads * d])?;
    let layout = causal_attention::Layout { lens: &lens, heads, kv_heads, scale: 0.125 };
    causal_attention::forward(q.view(), k.view(), v.view(), layout, o.view_mut())?;
    Ok(vec![o])
}

fn norm_and_rope(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (batch, heads, d) = (2, 2, 128);
    let segment = rms_norm_rope::Segment { tokens: 35, joint_tokens: 41, at: 3, heads };
    let (rows, inner) = (batch * segment.tokens, heads * d);
    let joint = [batch * segment.joint_tokens, inner];
    let (qkv, weights) = (on.numbers(&[rows, 3 * inner], 1)?, on.numbers(&[2, d], 2)?);
    let rope = on.wide(&[segment.tokens, d], 3)?;
    let [mut q, mut k, mut v] = [on.numbers(&joint, 4)?, on.numbers(&joint, 5)?, on.numbers(&joint, 6)?];
    let (mut rstd, mut dqkv) = (on.empty_wide(&[rows, 2 * heads])?, on.empty(&[rows, 3 * inner])?);
    let to = (q.view_mut(), k.view_mut(), v.view_mut(), rstd.view_mut());
    rms_norm_rope::forward(qkv.view(), weights.view(), rope.view(), segment, to.0, to.1, to.2, to.3)?;
    let [dq, dk, dv] = [on.numbers(&joint, 7)?, on.numbers(&joint, 8)?, on.numbers(&joint, 9)?];
    let saved = (qkv.view(), weights.view(), rope.view(), rstd.view());
    let (dq, dk, dv) = (dq.view(), dk.view(), dv.view());
    rms_norm_rope::backward(saved.0, saved.1, saved.2, saved.3, segment, dq, dk, dv, dqkv.view_mut())?;
    Ok(vec![q, k, v, rstd, dqkv])
}

fn layer_norm(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (batch, tokens, c) = (2, 35, CHANNELS);
    let rows = batch * tokens;
    let (x, dy, modulation) =
        (on.numbers(&[rows, c], 1)?, on.numbers(&[rows, c], 3)?, on.numbers(&[batch, 2 * c], 2)?);
    let (mut y, mut stats) = (on.empty(&[rows, c])?, on.empty_wide(&[rows, 2])?);
    let (mut dx, mut dm) = (on.numbers(&[rows, c], 4)?, on.empty(&[batch, 2 * c])?);
    layer_norm_modulate::forward(x.view(), modulation.view(), tokens, y.view_mut(), stats.view_mut())?;
    let to = (dx.view_mut(), Some(dm.view_mut()));
    layer_norm_modulate::backward(x.view(), modulation.view(), stats.view(), tokens, dy.view(), to.0, to.1)?;
    Ok(vec![y, stats, dx, dm])
}

fn gated(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (batch, tokens, c) = (2, 35, CHANNELS);
    let shape = [batch * tokens, c];
    let (x, gate, y) = (on.numbers(&shape, 1)?, on.numbers(&[batch, c], 2)?, on.numbers(&shape, 3)?);
    let dout = on.numbers(&shape, 4)?;
    let (mut out, mut dy, mut dgate) = (on.empty(&shape)?, on.empty(&shape)?, on.empty(&[batch, c])?);
    gated_residual::forward(x.view(), gate.view(), y.view(), tokens, out.view_mut())?;
    let to = Some(dgate.view_mut());
    gated_residual::backward(gate.view(), y.view(), dout.view(), tokens, dy.view_mut(), to)?;
    Ok(vec![out, dy, dgate])
}

fn activations(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (shape, x) = ([ROWS, CHANNELS], on.numbers(&[ROWS, CHANNELS], 1)?);
    let (mut gelu_y, mut silu_y) = (on.empty(&shape)?, on.empty(&shape)?);
    let (mut gelu_d, mut silu_d) = (on.numbers(&shape, 2)?, on.numbers(&shape, 3)?);
    gelu::forward(x.view(), gelu_y.view_mut())?;
    gelu::backward(x.view(), gelu_d.view_mut())?;
    silu::forward(x.view(), silu_y.view_mut())?;
    silu::backward(x.view(), silu_d.view_mut())?;
    let mut half = on.empty(&[ROWS, CHANNELS / 2])?;
    swiglu::forward(x.view(), half.view_mut())?;
    Ok(vec![gelu_y, gelu_d, silu_y, silu_d, half])
}

fn norm(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let mut y = on.empty(&[ROWS, CHANNELS])?;
    let (x, weight) = (on.numbers(&[ROWS, CHANNELS], 1)?, on.numbers(&[1, CHANNELS], 2)?);
    rms_norm::forward(x.view(), weight.view(), 1e-6, y.view_mut())?;
    Ok(vec![y])
}

fn turned(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (table, mut x) = (on.wide(&[ROWS, 64], 1)?, on.numbers(&[ROWS, CHANNELS], 2)?);
    rotary::forward(table.view(), CHANNELS / 64, x.view_mut())?;
    Ok(vec![x])
}

fn scaled(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (x, mut y) = (on.numbers(&[ROWS, CHANNELS], 1)?, on.empty(&[ROWS, CHANNELS])?);
    scale_shift::forward(x.view(), &on.numbers(&[CHANNELS], 2)?, &on.numbers(&[CHANNELS], 3)?, y.view_mut())?;
    Ok(vec![y])
}

fn embedded(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let ids: Vec<u32> = (0..41).map(|i| i * 7 % 9).collect();
    let mut y = on.empty(&[ids.len(), CHANNELS])?;
    embedding::forward(&ids, on.numbers(&[9, CHANNELS], 1)?.view(), y.view_mut())?;
    Ok(vec![y])
}

fn copies(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let shape = [ROWS, CHANNELS];
    let (from, mut to) = (on.numbers(&shape, 1)?, on.numbers(&shape, 2)?);
    let mut all = Vec::new();
    copy::add_scaled(0.5, from.view(), to.view_mut())?;
    all.push(to.duplicate()?);
    copy::lerp(0.25, from.view(), to.view_mut())?;
    all.push(to.duplicate()?);
    copy::multiply(from.view(), to.view_mut())?;
    all.push(to.duplicate()?);
    copy::broadcast_row(on.numbers(&[1, CHANNELS], 3)?.view(), to.view_mut())?;
    all.push(to);
    Ok(all)
}

fn kroneckers(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (m, l, q, k) = (ROWS, 8, 16, 16);
    let (w1, t, dy) = (on.wide(&[l, q], 1)?, on.numbers(&[m, q * k], 2)?, on.numbers(&[m, l * k], 3)?);
    let (mut y, mut dw1, mut dt) =
        (on.numbers(&[m, l * k], 4)?, on.empty_wide(&[l, q])?, on.empty(&[m, q * k])?);
    kronecker::forward(0.7, w1.view(), t.view(), y.view_mut())?;
    kronecker::backward(0.7, w1.view(), t.view(), dy.view(), 0.0, dw1.view_mut(), dt.view_mut())?;
    Ok(vec![y, dw1, dt])
}

fn convolved(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (input, c, out) = (conv2d::Pictures { count: 1, height: 9, width: 7 }, 32, 16);
    let (x, mut y) = (on.numbers(&[input.pixels(), c], 1)?, on.empty(&[input.pixels(), out])?);
    let (weight, bias) = (on.numbers(&[9 * c, out], 2)?, on.numbers(&[out], 3)?);
    let filter =
        conv2d::Filter { weight: &weight, bias: &bias, norm: None, resample: conv2d::Resample::Keep };
    conv2d::forward(x.view(), input, filter, Write::Replace, y.view_mut())?;
    Ok(vec![y])
}

fn noised(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let shape = [2 * ROWS, 64];
    let (x0, noise) = (on.wide(&shape, 1)?, on.wide(&shape, 2)?);
    let (mut noisy, mut target) = (on.empty(&shape)?, on.empty_wide(&shape)?);
    flow::forward(x0.view(), noise.view(), &[0.25, 0.75], noisy.view_mut(), target.view_mut())?;
    Ok(vec![noisy, target])
}

fn losses(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let shape = [2 * ROWS, 64];
    let (pred, target) = (on.numbers(&shape, 1)?, on.wide(&shape, 2)?);
    let (mut loss, mut dpred) = (on.empty_wide(&[2, 1])?, on.empty(&shape)?);
    let to = (loss.view_mut(), dpred.view_mut());
    loss::forward_backward(loss::Loss::Squared, pred.view(), target.view(), &[1.0, 0.5], to.0, to.1)?;
    Ok(vec![loss, dpred])
}

fn guided(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let (mut x, other) = (on.numbers(&[ROWS, 64], 1)?, on.numbers(&[ROWS, 64], 2)?);
    guidance::forward(x.view_mut(), other.view(), 3.5, guidance::Norm::Conditional)?;
    Ok(vec![x])
}

fn optimisers(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let shape = [1, 3000];
    let (mut p, g) = (on.wide(&shape, 1)?, on.wide(&shape, 2)?);
    let (mut m, mut v, mut clip) = (on.wide(&shape, 3)?, on.wide(&shape, 4)?, on.empty_wide(&[1, 2])?);
    // Second moments are not negative.
    copy::multiply(v.duplicate()?.view(), v.view_mut())?;
    adamw::clip_factor(g.view(), Some(1.0), clip.view_mut())?;
    let hyper =
        adamw::Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, l2: 0.0, step: 3 };
    adamw::step(p.view_mut(), g.view(), clip.view(), m.view_mut(), v.view_mut(), hyper)?;
    let (mut lion_p, mut lion_m) = (on.wide(&shape, 5)?, on.wide(&shape, 6)?);
    let hyper = lion::Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.99, weight_decay: 0.1 };
    lion::step(lion_p.view_mut(), g.view(), clip.view(), lion_m.view_mut(), hyper)?;
    Ok(vec![p, m, v, clip, lion_p, lion_m])
}

fn factored(on: &Place<'_>) -> Result<Vec<Tensor>> {
    let shape = [37, 16];
    let (mut p, g, mut clip) = (on.wide(&shape, 1)?, on.wide(&shape, 2)?, on.empty_wide(&[1, 2])?);
    let (mut rows, mut columns) = (on.wide(&[1, shape[0]], 3)?, on.wide(&[1, shape[1]], 4)?);
    for moment in [&mut rows, &mut columns] {
        copy::multiply(moment.duplicate()?.view(), moment.view_mut())?;
    }
    clip.fill(0.25)?;
    let hyper = adafactor::Hyper {
        lr: 1e-2,
        beta2: 0.7,
        eps: 1e-3,
        threshold: 1.0,
        weight_decay: 0.1,
        scale_floor: Some(1e-3),
    };
    let state = adafactor::State { rows: rows.view_mut(), columns: columns.view_mut(), first: None };
    adafactor::step(p.view_mut(), g.view(), clip.view(), state, hyper)?;
    Ok(vec![p, rows, columns])
}
