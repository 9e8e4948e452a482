//! The kinds of work of a training step, each alone, at a small and a large extent.

use tenggat_models::Result;
use tenggat_plan::{Rate, Rates};
use tenggat_tensor::ops::rms_norm_rope::{self, Segment};
use tenggat_tensor::ops::{adamw, attention, copy, gated_residual, gelu, gemm, layer_norm_modulate};
use tenggat_tensor::random::Philox;
use tenggat_tensor::{DType, Device, Tensor};

use super::timing::Trial;

/// Width of the streams. Like Qwen-Image's 3072 a multiple of many powers of two, at which rows of a matrix
/// compete for the same places in the caches: the same products at 192 or 384 run a tenth faster.
const C: usize = 256;
/// Channels per head.
const HEAD_DIM: usize = 64;
/// Rows of products, few and many.
const ROWS: [usize; 2] = [24, 512];
/// Ranks, and rows of their products: between those of captions and of pictures, because few rows are slower.
const RANKS: [usize; 2] = [8, 64];
const ADAPTED_ROWS: usize = 128;
/// Parameters of a LoRA with the rank below, more than caches near a core hold, met by one row each.
const LORA_PARAMETERS: usize = 1 << 21;
const LORA_RANK: usize = 16;
/// Bytes that the passage of a LoRA counts per parameter: read forward and backward, gradient written.
const LORA_BYTES: f64 = 12.0;
/// Tokens of attention.
const TOKENS: [usize; 2] = [64, 384];
/// Rows of the work between the products.
const BETWEEN_ROWS: usize = 256;
/// Parameters of the optimiser, more than caches near a core hold, as after a whole step; and bytes that it
/// moves for each: gradient twice, weight and both moments both ways.
const PARAMETERS: usize = 1 << 21;
const OPTIMISER_BYTES: f64 = 32.0;
/// Values that are copied: more than caches hold, and what has just been computed.
const COPIED: [usize; 2] = [1 << 24, 1 << 18];
/// Bytes of a value.
const F32_BYTES: f64 = 4.0;

/// A kind of work under test: `units` (FLOPs or bytes) a run.
pub(super) struct Op<'a> {
    pub name: &'static str,
    pub units: f64,
    pub trial: Trial<'a>,
}

/// All of them, in the order that [`rates`] takes their results in.
pub(super) fn all(device: &Device) -> Result<[Op<'_>; 14]> {
    let bench = Bench { device };
    Ok([
        bench.products("products, few rows", ROWS[0])?,
        bench.products("products, many rows", ROWS[1])?,
        bench.adapter("LoRA products, low rank", RANKS[0])?,
        bench.adapter("LoRA products, high rank", RANKS[1])?,
        bench.adapters_alone()?,
        bench.attention("attention, few tokens", TOKENS[0])?,
        bench.attention("attention, many tokens", TOKENS[1])?,
        bench.attention_backward("attention backward, few tokens", TOKENS[0])?,
        bench.attention_backward("attention backward, many tokens", TOKENS[1])?,
        bench.between()?,
        bench.optimiser()?,
        bench.copy("memory", COPIED[0])?,
        bench.copy("cache", COPIED[1])?,
        bench.next_to_nothing()?,
    ])
}

/// Rates from the units per second of [`all`].
pub(super) fn rates(per_s: [f64; 14]) -> Rates {
    let [few, many, low, high, lora_bytes_per_s, ..] = per_s;
    let [.., memory, cached, next_to_nothing] = per_s;
    let curve = |extents: [usize; 2], small: f64, large: f64| {
        Rate::through((extents[0] as f64, small), (extents[1] as f64, large))
    };
    // What the passage of their weights took does not belong to the rows.
    let of_rows = |rank: usize, per_s: f64| {
        let whole_s = adapter_units(rank) / per_s;
        let passage_s = (2 * rank * C) as f64 * LORA_BYTES / lora_bytes_per_s;
        adapter_units(rank) / (whole_s - passage_s).max(0.5 * whole_s)
    };
    let lora_gemm = curve(RANKS, of_rows(RANKS[0], low), of_rows(RANKS[1], high));
    Rates {
        gemm: curve(ROWS, few, many),
        gemm_fp8: None,
        lora_gemm,
        lora_gemm_f32: lora_gemm,
        lora_bytes_per_s,
        attention_forward: curve(TOKENS, per_s[5], per_s[6]),
        attention_backward: curve(TOKENS, per_s[7], per_s[8]),
        elementwise_bytes_per_s: per_s[9],
        optimiser_bytes_per_s: per_s[10],
        operand_bytes_per_s: memory,
        lora_activation_bytes_per_s: cached.max(memory),
        attention_bytes_per_s: cached.max(memory),
        host_bytes_per_s: memory,
        kernel_s: 1.0 / next_to_nothing,
        step_s: 0.0,
    }
}

/// FLOPs of the six products of a LoRA on one layer.
fn adapter_units(rank: usize) -> f64 {
    6.0 * 2.0 * (ADAPTED_ROWS * rank * C) as f64
}

struct Bench<'a> {
    device: &'a Device,
}

impl<'a> Bench<'a> {
    fn random(&self, shape: &[usize], seed: u64) -> Result<Tensor> {
        let mut values = vec![0.0f32; shape.iter().product()];
        Philox::new(seed).normal(0, &mut values);
        Ok(Tensor::from_f32(self.device, DType::F32, &values, shape)?)
    }

    /// The frozen products of an MLP, forward and backward.
    fn products(&self, name: &'static str, rows: usize) -> Result<Op<'a>> {
        let (x, wide) = (self.random(&[rows, C], 1)?, self.random(&[rows, 4 * C], 2)?);
        let (up, down) = (self.random(&[4 * C, C], 3)?, self.random(&[C, 4 * C], 4)?);
        let (mut y, mut y_wide) = (x.duplicate()?, wide.duplicate()?);
        let trial = Trial::new(move || {
            gemm::nt(1.0, x.view(), up.view(), 0.0, y_wide.view_mut())?;
            gemm::nt(1.0, wide.view(), down.view(), 0.0, y.view_mut())?;
            gemm::nn(1.0, x.view(), down.view(), 0.0, y_wide.view_mut())?;
            Ok(gemm::nn(1.0, wide.view(), up.view(), 0.0, y.view_mut())?)
        });
        Ok(Op { name, units: 4.0 * 2.0 * (rows * 4 * C * C) as f64, trial })
    }

    /// The six products of a LoRA on one layer, forward and backward.
    fn adapter(&self, name: &'static str, rank: usize) -> Result<Op<'a>> {
        let rows = ADAPTED_ROWS;
        let (x, dy) = (self.random(&[rows, C], 1)?, self.random(&[rows, C], 2)?);
        let (a, b) = (self.random(&[rank, C], 3)?, self.random(&[C, rank], 4)?);
        let (mut ax, mut u) = (x.empty_like(&[rows, rank])?, x.empty_like(&[rows, rank])?);
        let (mut y, mut dx) = (x.duplicate()?, x.duplicate()?);
        let (mut da, mut db) = (a.duplicate()?, b.duplicate()?);
        let trial = Trial::new(move || {
            gemm::nt(1.0, x.view(), a.view(), 0.0, ax.view_mut())?;
            gemm::nt(1.0, ax.view(), b.view(), 1.0, y.view_mut())?;
            gemm::nn(1.0, dy.view(), b.view(), 0.0, u.view_mut())?;
            gemm::tn(1.0, dy.view(), ax.view(), 0.0, db.view_mut())?;
            gemm::tn(1.0, u.view(), x.view(), 0.0, da.view_mut())?;
            Ok(gemm::nn(1.0, u.view(), a.view(), 1.0, dx.view_mut())?)
        });
        Ok(Op { name, units: adapter_units(rank), trial })
    }

    /// The same six products with one row, for as many layers as a LoRA has: as the modulation's are, and
    /// nearly all passage of weights.
    fn adapters_alone(&self) -> Result<Op<'a>> {
        let layers = LORA_PARAMETERS / (2 * LORA_RANK * C);
        let (x, dy) = (self.random(&[1, C], 1)?, self.random(&[1, C], 2)?);
        let lora = self.random(&[layers * 2 * LORA_RANK, C], 3)?;
        let mut gradient = lora.duplicate()?;
        let (mut ax, mut u) = (x.empty_like(&[1, LORA_RANK])?, x.empty_like(&[1, LORA_RANK])?);
        let (mut y, mut dx) = (x.duplicate()?, x.duplicate()?);
        let size = LORA_RANK * C;
        let trial = Trial::new(move || {
            for at in (0..layers).map(|layer| 2 * layer * size) {
                let a = lora.matrix(at, LORA_RANK, C)?;
                let b = lora.matrix(at + size, C, LORA_RANK)?;
                gemm::nt(1.0, x.view(), a, 0.0, ax.view_mut())?;
                gemm::nt(1.0, ax.view(), b, 1.0, y.view_mut())?;
                gemm::nn(1.0, dy.view(), b, 0.0, u.view_mut())?;
                gemm::tn(1.0, dy.view(), ax.view(), 0.0, gradient.matrix_mut(at + size, C, LORA_RANK)?)?;
                gemm::tn(1.0, u.view(), x.view(), 0.0, gradient.matrix_mut(at, LORA_RANK, C)?)?;
                gemm::nn(1.0, u.view(), a, 1.0, dx.view_mut())?;
            }
            Ok(())
        });
        Ok(Op { name: "LoRA products, one row", units: LORA_PARAMETERS as f64 * LORA_BYTES, trial })
    }

    /// `4·S²·c` FLOPs.
    fn attention(&self, name: &'static str, tokens: usize) -> Result<Op<'a>> {
        let mut joint = Joint::new(self, tokens)?;
        let trial = Trial::new(move || joint.forward());
        Ok(Op { name, units: 4.0 * (tokens * tokens * C) as f64, trial })
    }

    /// `10·S²·c` FLOPs.
    fn attention_backward(&self, name: &'static str, tokens: usize) -> Result<Op<'a>> {
        let mut joint = Joint::new(self, tokens)?;
        joint.forward()?;
        let trial = Trial::new(move || joint.backward());
        Ok(Op { name, units: 10.0 * (tokens * tokens * C) as f64, trial })
    }

    /// What stands between the products of one stream, forward and backward.
    fn between(&self) -> Result<Op<'a>> {
        let rows = BETWEEN_ROWS;
        let tensor = |cols: usize, seed| self.random(&[rows, cols], seed);
        let (x, dy, wide, qkv) = (tensor(C, 1)?, tensor(C, 2)?, tensor(4 * C, 3)?, tensor(3 * C, 4)?);
        let (modulation, gate) = (self.random(&[1, 2 * C], 5)?, self.random(&[1, C], 6)?);
        let (weights, rope) = (self.random(&[2, HEAD_DIM], 7)?, tensor(HEAD_DIM, 8)?);
        let (mut dmodulation, mut dgate) = (modulation.duplicate()?, gate.duplicate()?);
        let (mut y, mut dx, mut hidden, mut dqkv) =
            (x.duplicate()?, x.duplicate()?, wide.duplicate()?, qkv.duplicate()?);
        let (mut q, mut k, mut v) = (x.duplicate()?, x.duplicate()?, x.duplicate()?);
        let heads = C / HEAD_DIM;
        let (mut stats, mut rstd) = (x.empty_like(&[rows, 2])?, x.empty_like(&[rows, 2 * heads])?);
        let segment = Segment { tokens: rows, joint_tokens: rows, at: 0, heads };
        let trial = Trial::new(move || {
            let (m, w, r) = (modulation.view(), weights.view(), rope.view());
            layer_norm_modulate::forward(x.view(), m, rows, y.view_mut(), stats.view_mut())?;
            let (to_q, to_k, to_v) = (q.view_mut(), k.view_mut(), v.view_mut());
            rms_norm_rope::forward(qkv.view(), w, r, segment, to_q, to_k, to_v, rstd.view_mut())?;
            gated_residual::forward(x.view(), gate.view(), dy.view(), rows, y.view_mut())?;
            gelu::forward(wide.view(), hidden.view_mut())?;
            gelu::backward(wide.view(), hidden.view_mut())?;
            let dgate = Some(dgate.view_mut());
            gated_residual::backward(gate.view(), x.view(), dy.view(), rows, dx.view_mut(), dgate)?;
            let (dq, dk, dv, s) = (q.view(), k.view(), v.view(), rstd.view());
            rms_norm_rope::backward(qkv.view(), w, r, s, segment, dq, dk, dv, dqkv.view_mut())?;
            let dm = Some(dmodulation.view_mut());
            Ok(layer_norm_modulate::backward(x.view(), m, stats.view(), rows, dy.view(), dx.view_mut(), dm)?)
        });
        // In rows of c, as planning counts them. Forward: norm 2, head norms 6, gate 3, GELU 8. Backward:
        // GELU 12, gate 3, head norms 9, norm 4.
        Ok(Op { name: "norms, gates, GELU", units: (19.0 + 28.0) * (rows * C) as f64 * F32_BYTES, trial })
    }

    fn optimiser(&self) -> Result<Op<'a>> {
        let tensor = |seed| self.random(&[1, PARAMETERS], seed);
        let (mut p, g, mut m, mut v) = (tensor(1)?, tensor(2)?, tensor(3)?, tensor(4)?);
        v.fill(1.0)?;
        let mut clip = p.empty_like(&[1, 2])?;
        let hyper = adamw::Hyper {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.01,
            l2: 0.0,
            step: 10,
        };
        let trial = Trial::new(move || {
            adamw::clip_factor(g.view(), Some(1.0), clip.view_mut())?;
            let (m, v) = (m.view_mut(), v.view_mut());
            Ok(adamw::step(p.view_mut(), g.view(), clip.view(), m, v, hyper)?)
        });
        Ok(Op { name: "optimiser", units: PARAMETERS as f64 * OPTIMISER_BYTES, trial })
    }

    /// A copy, read and written.
    fn copy(&self, name: &'static str, values: usize) -> Result<Op<'a>> {
        let from = self.random(&[values / 512, 512], 1)?;
        let mut to = from.duplicate()?;
        let trial = Trial::new(move || Ok(copy::forward(from.view(), to.view_mut())?));
        Ok(Op { name, units: 2.0 * values as f64 * F32_BYTES, trial })
    }

    /// An operation on so little that it costs its buffer and its start on all threads.
    fn next_to_nothing(&self) -> Result<Op<'a>> {
        let x = self.random(&[256, 16], 1)?;
        let trial = Trial::new(move || {
            let mut y = x.empty_like(x.shape())?;
            Ok(gelu::forward(x.view(), y.view_mut())?)
        });
        Ok(Op { name: "next to nothing", units: 1.0, trial })
    }
}

/// Attention over one sample.
struct Joint {
    /// q, k, v, o, and the gradients of o, q, k, v.
    tensors: [Tensor; 8],
    lse: Tensor,
    key_lens: [usize; 1],
}

impl Joint {
    fn new(bench: &Bench<'_>, tokens: usize) -> Result<Self> {
        let tensor = |seed| bench.random(&[tokens, C], seed);
        let tensors =
            [tensor(1)?, tensor(2)?, tensor(3)?, tensor(4)?, tensor(5)?, tensor(6)?, tensor(7)?, tensor(8)?];
        let lse = tensors[0].empty_like(&[tokens, C / HEAD_DIM])?;
        Ok(Joint { tensors, lse, key_lens: [tokens] })
    }

    fn layout(key_lens: &[usize; 1]) -> attention::Layout<'_> {
        let scale = 1.0 / (HEAD_DIM as f64).sqrt();
        attention::Layout {
            key_lens,
            device_lens: None,
            tokens: key_lens[0],
            heads: C / HEAD_DIM,
            scale,
            bf16_products: false,
        }
    }

    fn forward(&mut self) -> Result<()> {
        let layout = Self::layout(&self.key_lens);
        let [q, k, v, o, ..] = &mut self.tensors;
        let (o, lse) = (o.view_mut(), self.lse.view_mut());
        Ok(attention::forward(q.view(), k.view(), v.view(), layout, o, lse)?)
    }

    fn backward(&mut self) -> Result<()> {
        let layout = Self::layout(&self.key_lens);
        let [q, k, v, o, d_o, dq, dk, dv] = &mut self.tensors;
        let saved =
            attention::Saved { q: q.view(), k: k.view(), v: v.view(), o: o.view(), lse: self.lse.view() };
        let (dq, dk, dv) = (dq.view_mut(), dk.view_mut(), dv.view_mut());
        Ok(attention::backward(saved, layout, d_o.view(), dq, dk, dv)?)
    }
}
