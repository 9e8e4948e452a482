//! Every op of the training step at the shapes of a real block, quick enough to run as a whole:
//! `cargo bench -p tenggat-bench --bench ops`.
//!
//! Shapes: a block of width 512 with 8 heads of 64, 256 image and 64 text tokens, rank 16. Throughput is in
//! elements of the largest operand, or in multiply-adds for products.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tenggat_tensor::ops::{
    adamw, attention, flow, gated_residual, gelu, gemm, layer_norm_modulate, linear, loss, rms_norm,
    rms_norm_rope, silu,
};
use tenggat_tensor::random::Philox;
use tenggat_tensor::{DType, Device, Tensor};

const TOKENS: usize = 320;
const C: usize = 512;
const HEADS: usize = 8;
const RANK: usize = 16;

fn randn(device: &Device, shape: &[usize], seed: u64) -> Tensor {
    let mut values = vec![0.0f32; shape.iter().product()];
    Philox::new(seed).normal(0, &mut values);
    Tensor::from_f32(device, DType::F32, &values, shape).unwrap()
}

fn products(c: &mut Criterion) {
    let device = Device::cpu();
    let (x, y) = (randn(&device, &[TOKENS, C], 1), randn(&device, &[TOKENS, 4 * C], 2));
    let weight = randn(&device, &[4 * C, C], 3);
    let narrow = tenggat_tensor::weight::Weight::Dense(weight.to_dtype(DType::BF16).unwrap());
    let wide = tenggat_tensor::weight::Weight::Dense(weight);
    let mut group = c.benchmark_group("products");
    group.throughput(Throughput::Elements((TOKENS * C * 4 * C) as u64));
    for (name, w) in [("f32 weight", &wide), ("bf16 weight", &narrow)] {
        let (mut out, mut dx) = (randn(&device, &[TOKENS, 4 * C], 4), randn(&device, &[TOKENS, C], 5));
        group.bench_function(format!("linear forward, {name}"), |b| {
            b.iter(|| linear::forward(black_box(x.view()), w, None, out.view_mut()).unwrap());
        });
        group.bench_function(format!("linear backward, {name}"), |b| {
            b.iter(|| {
                linear::backward(black_box(y.view()), w, linear::Write::Replace, dx.view_mut()).unwrap()
            });
        });
    }
    let (a, mut da) = (randn(&device, &[TOKENS, RANK], 6), randn(&device, &[4 * C, RANK], 7));
    group.throughput(Throughput::Elements((TOKENS * RANK * 4 * C) as u64));
    group.bench_function("LoRA gradient", |b| {
        b.iter(|| gemm::tn(1.0, black_box(y.view()), a.view(), 0.0, da.view_mut()).unwrap());
    });
    group.finish();
}

fn attention_op(c: &mut Criterion) {
    let device = Device::cpu();
    let [q, k, v, d_o] = [1, 2, 3, 4].map(|seed| randn(&device, &[TOKENS, C], seed));
    let [mut o, mut dq, mut dk, mut dv] = [(); 4].map(|()| randn(&device, &[TOKENS, C], 9));
    let mut lse = randn(&device, &[TOKENS, HEADS], 9);
    let layout = attention::Layout {
        key_lens: &[TOKENS - 7],
        device_lens: None,
        tokens: TOKENS,
        heads: HEADS,
        scale: 0.125,
        bf16_products: false,
    };
    let mut group = c.benchmark_group("attention");
    group.throughput(Throughput::Elements((2 * TOKENS * TOKENS * C) as u64));
    group.bench_function("forward", |b| {
        b.iter(|| {
            attention::forward(q.view(), k.view(), v.view(), layout, o.view_mut(), lse.view_mut()).unwrap();
        });
    });
    group.bench_function("backward", |b| {
        b.iter(|| {
            let saved =
                attention::Saved { q: q.view(), k: k.view(), v: v.view(), o: o.view(), lse: lse.view() };
            attention::backward(saved, layout, d_o.view(), dq.view_mut(), dk.view_mut(), dv.view_mut())
                .unwrap();
        });
    });
    group.finish();
}

fn rows(c: &mut Criterion) {
    let device = Device::cpu();
    let t = |cols: usize, seed| randn(&device, &[TOKENS, cols], seed);
    let (x, dy, wide) = (t(C, 1), t(C, 2), t(4 * C, 3));
    let (mut y, mut dx, mut hidden) = (t(C, 4), t(C, 5), t(4 * C, 6));
    let (modulation, mut dm) = (randn(&device, &[1, 2 * C], 7), randn(&device, &[1, 2 * C], 8));
    let (gate, mut dgate) = (randn(&device, &[1, C], 9), randn(&device, &[1, C], 10));
    let (mut stats, weight) = (t(2, 11), randn(&device, &[1, C], 12));
    let mut group = c.benchmark_group("rows");
    group.throughput(Throughput::Elements((TOKENS * C) as u64));
    group.bench_function("layer_norm_modulate forward", |b| {
        b.iter(|| {
            let (y, stats) = (y.view_mut(), stats.view_mut());
            layer_norm_modulate::forward(x.view(), modulation.view(), TOKENS, y, stats).unwrap();
        });
    });
    group.bench_function("layer_norm_modulate backward", |b| {
        b.iter(|| {
            let (m, s, d) = (modulation.view(), stats.view(), dy.view());
            let dm = Some(dm.view_mut());
            layer_norm_modulate::backward(x.view(), m, s, TOKENS, d, dx.view_mut(), dm).unwrap();
        });
    });
    group.bench_function("gated_residual forward", |b| {
        b.iter(|| gated_residual::forward(x.view(), gate.view(), dy.view(), TOKENS, y.view_mut()).unwrap());
    });
    group.bench_function("gated_residual backward", |b| {
        b.iter(|| {
            let (dy_, dgate) = (dx.view_mut(), Some(dgate.view_mut()));
            gated_residual::backward(gate.view(), x.view(), dy.view(), TOKENS, dy_, dgate).unwrap();
        });
    });
    group.bench_function("rms_norm", |b| {
        b.iter(|| rms_norm::forward(x.view(), weight.view(), 1e-6, y.view_mut()).unwrap());
    });
    group.bench_function("silu forward", |b| b.iter(|| silu::forward(x.view(), y.view_mut()).unwrap()));
    group.bench_function("silu backward", |b| b.iter(|| silu::backward(x.view(), dx.view_mut()).unwrap()));
    group.bench_function("flow", |b| {
        b.iter(|| flow::forward(x.view(), dy.view(), &[0.3], y.view_mut(), dx.view_mut()).unwrap());
    });
    let mut loss = randn(&device, &[1, 1], 13);
    group.bench_function("mse", |b| {
        b.iter(|| {
            loss::forward_backward(
                loss::Loss::Squared,
                x.view(),
                dy.view(),
                &[1.0],
                loss.view_mut(),
                dx.view_mut(),
            )
            .unwrap()
        });
    });
    group.throughput(Throughput::Elements((TOKENS * 4 * C) as u64));
    group.bench_function("gelu forward", |b| {
        b.iter(|| gelu::forward(wide.view(), hidden.view_mut()).unwrap())
    });
    group.bench_function("gelu backward", |b| {
        b.iter(|| gelu::backward(wide.view(), hidden.view_mut()).unwrap())
    });
    group.finish();
}

fn heads(c: &mut Criterion) {
    let device = Device::cpu();
    let qkv = randn(&device, &[TOKENS, 3 * C], 1);
    let (weights, rope) = (randn(&device, &[2, C / HEADS], 2), randn(&device, &[TOKENS, C / HEADS], 3));
    let [mut q, mut k, mut v] = [4, 5, 6].map(|seed| randn(&device, &[TOKENS, C], seed));
    let (mut rstd, mut dqkv) = (randn(&device, &[TOKENS, 2 * HEADS], 7), randn(&device, &[TOKENS, 3 * C], 8));
    let segment = rms_norm_rope::Segment { tokens: TOKENS, joint_tokens: TOKENS, at: 0, heads: HEADS };
    let mut group = c.benchmark_group("heads");
    group.throughput(Throughput::Elements((TOKENS * 3 * C) as u64));
    group.bench_function("rms_norm_rope forward", |b| {
        b.iter(|| {
            let (w, r) = (weights.view(), rope.view());
            let (q, k, v) = (q.view_mut(), k.view_mut(), v.view_mut());
            rms_norm_rope::forward(qkv.view(), w, r, segment, q, k, v, rstd.view_mut()).unwrap();
        });
    });
    group.bench_function("rms_norm_rope backward", |b| {
        b.iter(|| {
            let (w, r, s) = (weights.view(), rope.view(), rstd.view());
            let (dq, dk, dv) = (q.view(), k.view(), v.view());
            rms_norm_rope::backward(qkv.view(), w, r, s, segment, dq, dk, dv, dqkv.view_mut()).unwrap();
        });
    });
    group.finish();
}

fn optimiser(c: &mut Criterion) {
    let device = Device::cpu();
    let n = 1 << 20;
    let [mut p, g, mut m, mut v] = [1, 2, 3, 4].map(|seed| randn(&device, &[1, n], seed));
    v.fill(1.0).unwrap();
    let mut clip = randn(&device, &[1, 2], 5);
    let hyper =
        adamw::Hyper { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.01, l2: 0.0, step: 10 };
    let mut group = c.benchmark_group("optimiser");
    group.throughput(Throughput::Elements(n as u64));
    group.bench_function("clip_factor", |b| {
        b.iter(|| adamw::clip_factor(g.view(), Some(1.0), clip.view_mut()).unwrap());
    });
    group.bench_function("adamw", |b| {
        b.iter(|| {
            let (m, v) = (m.view_mut(), v.view_mut());
            adamw::step(p.view_mut(), g.view(), clip.view(), m, v, hyper).unwrap();
        });
    });
    group.finish();
}

fn config() -> Criterion {
    let seconds = std::time::Duration::from_secs;
    Criterion::default().sample_size(20).measurement_time(seconds(2)).warm_up_time(seconds(1))
}

criterion_group!(name = ops; config = config(); targets = products, attention_op, rows, heads, optimiser);
criterion_main!(ops);
