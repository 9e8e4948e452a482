//! How much of their vendor's peaks the GPUs of one generation and purpose reach.

use serde::Serialize;

/// Where a number comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EfficiencySource {
    /// Measured, and where it is written down.
    Measured(&'static str),
    /// Set so that public reports of training speeds are met in the middle.
    Reports,
    /// Taken from a related case, not measured.
    Assumed,
}

/// A share of a peak that is reached, with its source.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Efficiency {
    /// Share of the vendor's peak, in (0, 1].
    pub share: f64,
    /// Where it comes from.
    pub source: EfficiencySource,
}

const fn assumed(share: f64) -> Efficiency {
    Efficiency { share, source: EfficiencySource::Assumed }
}

const fn reports(share: f64) -> Efficiency {
    Efficiency { share, source: EfficiencySource::Reports }
}

const fn measured(share: f64, written: &'static str) -> Efficiency {
    Efficiency { share, source: EfficiencySource::Measured(written) }
}

/// How much of their peaks the GPUs of one generation and purpose reach.
///
/// Cards of one generation differ by their power limit: a workstation card has a gaming card's chip, more
/// units switched on, and half the power for them, so that it holds its stated clock in games but not in
/// matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Family {
    /// Name of the generation and purpose.
    pub name: &'static str,
    /// Large bf16 products.
    pub gemm_bf16: Efficiency,
    /// Large fp8 products.
    pub gemm_fp8: Efficiency,
    /// Products in true f32.
    pub gemm_f32: Efficiency,
    /// Fused attention written for this generation (cuDNN), forward, of the bf16 peak.
    pub attention_forward: Efficiency,
    /// The same, backward.
    pub attention_backward: Efficiency,
    /// Rate of FlashAttention 2, which PyTorch's `scaled_dot_product_attention` runs by default, over that
    /// of `attention_forward` and `attention_backward`. It was written for Ampere and does not use the
    /// matrix units of Hopper and of the Blackwell data-centre cards as they are meant to be used.
    pub flash_attention_2: Efficiency,
    /// Streaming from memory.
    pub bandwidth: Efficiency,
    /// Rows at which a product reaches half its rate: tiles are 128 or 256 rows, and all multiprocessors
    /// want some.
    pub half_rows: f64,
}

/// A100.
pub(super) const AMPERE_DATA_CENTRE: Family = Family {
    name: "Ampere, data centre",
    gemm_bf16: reports(0.62),
    gemm_fp8: assumed(0.0),
    gemm_f32: assumed(0.85),
    attention_forward: reports(0.48),
    attention_backward: reports(0.38),
    flash_attention_2: assumed(1.0),
    bandwidth: assumed(0.87),
    half_rows: 150.0,
};
/// RTX 3060 to 3090 Ti, A10G. These run above the boost clock that their peak is stated at.
pub(super) const AMPERE: Family = Family {
    name: "Ampere",
    gemm_bf16: reports(0.88),
    gemm_fp8: assumed(0.0),
    gemm_f32: assumed(0.85),
    attention_forward: reports(0.66),
    attention_backward: reports(0.53),
    flash_attention_2: assumed(1.0),
    bandwidth: assumed(0.87),
    half_rows: 150.0,
};
/// RTX A6000: 155 TFLOP/s stated, 300 W; in training it is commonly seen a little ahead of an RTX 3090.
pub(super) const AMPERE_WORKSTATION: Family = Family {
    name: "Ampere, workstation",
    gemm_bf16: assumed(0.46),
    attention_forward: assumed(0.36),
    attention_backward: assumed(0.29),
    ..AMPERE
};
/// RTX 40.
pub(super) const ADA: Family = Family {
    name: "Ada",
    gemm_bf16: assumed(0.85),
    gemm_fp8: assumed(0.80),
    gemm_f32: assumed(0.75),
    attention_forward: assumed(0.65),
    attention_backward: assumed(0.50),
    flash_attention_2: assumed(1.0),
    bandwidth: assumed(0.88),
    half_rows: 150.0,
};
/// RTX 6000 Ada, L40S: 362 TFLOP/s stated, 300 and 350 W.
pub(super) const ADA_WORKSTATION: Family = Family {
    name: "Ada, workstation",
    gemm_bf16: assumed(0.65),
    gemm_fp8: assumed(0.60),
    attention_forward: assumed(0.50),
    attention_backward: assumed(0.40),
    ..ADA
};
/// L4: 121 TFLOP/s stated, 72 W.
pub(super) const ADA_LOW_POWER: Family = Family {
    name: "Ada, 72 W",
    gemm_bf16: assumed(0.50),
    gemm_fp8: assumed(0.48),
    attention_forward: assumed(0.40),
    attention_backward: assumed(0.32),
    ..ADA
};
/// H100, H200.
pub(super) const HOPPER: Family = Family {
    name: "Hopper",
    gemm_bf16: measured(0.80, "cuBLASLt on an H200, 790 of 989 TFLOP/s"),
    gemm_fp8: measured(0.71, "cuBLASLt on an H200, 1400 of 1979 TFLOP/s"),
    gemm_f32: assumed(0.75),
    // NVIDIA's own figures for cuDNN 9.19 on an H200, bf16, 128 channels, 4096 tokens, no mask: 671 and 560
    // TFLOP/s.
    attention_forward: assumed(0.68),
    attention_backward: assumed(0.57),
    flash_attention_2: assumed(0.53),
    bandwidth: measured(0.89, "streaming kernels on an H200, 4.3 of 4.8 TB/s"),
    half_rows: 200.0,
};
/// B200, B300.
pub(super) const BLACKWELL_DATA_CENTRE: Family = Family {
    name: "Blackwell, data centre",
    gemm_bf16: assumed(0.70),
    gemm_fp8: assumed(0.65),
    gemm_f32: assumed(0.75),
    attention_forward: assumed(0.45),
    attention_backward: assumed(0.36),
    flash_attention_2: assumed(0.45),
    bandwidth: assumed(0.88),
    half_rows: 400.0,
};
/// RTX 50, RTX PRO 6000, GB10.
pub(super) const BLACKWELL: Family = Family {
    name: "Blackwell",
    gemm_bf16: reports(0.85),
    gemm_fp8: assumed(0.75),
    gemm_f32: assumed(0.75),
    attention_forward: reports(0.65),
    attention_backward: reports(0.50),
    flash_attention_2: assumed(1.0),
    bandwidth: assumed(0.88),
    half_rows: 250.0,
};
/// A card that is described by numbers alone: the middle of the others.
pub(super) const UNKNOWN: Family = Family {
    name: "described by its numbers",
    gemm_bf16: assumed(0.75),
    gemm_fp8: assumed(0.65),
    gemm_f32: assumed(0.75),
    attention_forward: assumed(0.55),
    attention_backward: assumed(0.44),
    flash_attention_2: assumed(0.90),
    bandwidth: assumed(0.87),
    half_rows: 200.0,
};
