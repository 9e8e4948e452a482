//! The catalogue of GPUs: what vendors state, and how much of it is reached.

use serde::Serialize;

/// Where a number comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// Measured, and where it is written down.
    Measured(&'static str),
    /// Taken from a related case, not measured.
    Assumed,
}

/// A share of a peak that is reached, with its evidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Efficiency {
    /// Share of the vendor's peak, in (0, 1].
    pub share: f64,
    /// Where it comes from.
    pub evidence: Evidence,
}

const fn assumed(share: f64) -> Efficiency {
    Efficiency { share, evidence: Evidence::Assumed }
}

const fn measured(share: f64, source: &'static str) -> Efficiency {
    Efficiency { share, evidence: Evidence::Measured(source) }
}

/// How much of their peaks the GPUs of one generation reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Family {
    /// Name of the generation.
    pub name: &'static str,
    /// Large bf16 products.
    pub gemm_bf16: Efficiency,
    /// Large fp8 products.
    pub gemm_fp8: Efficiency,
    /// Products in true f32.
    pub gemm_f32: Efficiency,
    /// Fused attention, forward, of the bf16 peak.
    pub attention_forward: Efficiency,
    /// Fused attention, backward, of the bf16 peak.
    pub attention_backward: Efficiency,
    /// Streaming from memory.
    pub bandwidth: Efficiency,
    /// Rows at which a product reaches half its rate: tiles are 128 or 256 rows, and all multiprocessors want some.
    pub half_rows: f64,
}

const AMPERE: Family = Family {
    name: "Ampere",
    gemm_bf16: assumed(0.80),
    gemm_fp8: assumed(0.0),
    gemm_f32: assumed(0.85),
    attention_forward: assumed(0.62),
    attention_backward: assumed(0.50),
    bandwidth: assumed(0.87),
    half_rows: 150.0,
};
const ADA: Family = Family {
    name: "Ada",
    gemm_bf16: assumed(0.85),
    gemm_fp8: assumed(0.80),
    gemm_f32: assumed(0.75),
    attention_forward: assumed(0.65),
    attention_backward: assumed(0.50),
    bandwidth: assumed(0.88),
    half_rows: 150.0,
};
const HOPPER: Family = Family {
    name: "Hopper",
    gemm_bf16: measured(0.80, "cuBLASLt on an H200, 790 of 989 TFLOP/s"),
    gemm_fp8: measured(0.71, "cuBLASLt on an H200, 1400 of 1979 TFLOP/s"),
    gemm_f32: assumed(0.75),
    // NVIDIA's own figures for cuDNN 9.19 on an H200, bf16, 128 channels, 4096 tokens, no mask: 671 and 560 TFLOP/s.
    attention_forward: assumed(0.68),
    attention_backward: assumed(0.57),
    bandwidth: measured(0.89, "streaming kernels on an H200, 4.3 of 4.8 TB/s"),
    half_rows: 200.0,
};
const BLACKWELL: Family = Family {
    name: "Blackwell",
    gemm_bf16: assumed(0.75),
    gemm_fp8: assumed(0.70),
    gemm_f32: assumed(0.75),
    attention_forward: assumed(0.50),
    attention_backward: assumed(0.40),
    bandwidth: assumed(0.88),
    half_rows: 250.0,
};

/// One GPU.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gpu {
    /// Name on the command line.
    pub name: &'static str,
    /// Dense bf16 tensor rate with 32-bit accumulation, TFLOP/s.
    pub bf16_tflops: f64,
    /// Dense fp8 tensor rate with 32-bit accumulation, TFLOP/s; 0 if there is none.
    pub fp8_tflops: f64,
    /// Dense TF32 tensor rate, TFLOP/s.
    pub tf32_tflops: f64,
    /// f32 rate without tensor cores, TFLOP/s.
    pub f32_tflops: f64,
    /// Memory bandwidth, GB/s (10⁹).
    pub bandwidth_gb_per_s: f64,
    /// Memory, GB (10⁹), as sold.
    pub memory_gb: f64,
    /// Host link, one direction, GB/s (10⁹) as reached with pinned memory; assumed.
    pub host_gb_per_s: f64,
    /// Generation.
    pub family: Family,
    /// Where the peaks are stated.
    pub source: &'static str,
}

impl Gpu {
    /// The GPU whose name contains all the words of `query`, letters' case and punctuation aside.
    ///
    /// # Errors
    /// [`UnknownGpu`] if there is none, or more than one.
    pub fn find(query: &str) -> Result<&'static Self, UnknownGpu> {
        let plain = |s: &str| s.to_lowercase().replace(['-', '_'], " ");
        let wanted = plain(query);
        let words: Vec<&str> =
            wanted.split_whitespace().filter(|w| !["nvidia", "rtx", "gpu"].contains(w)).collect();
        let fits = |gpu: &&Self| {
            let name = plain(gpu.name);
            !words.is_empty() && words.iter().all(|word| name.contains(word))
        };
        let found: Vec<&'static Self> = GPUS.iter().filter(fits).collect();
        match found[..] {
            [gpu] => Ok(gpu),
            [] => Err(UnknownGpu::None { query: query.to_owned(), known: names(GPUS.iter()) }),
            _ => Err(UnknownGpu::Several { query: query.to_owned(), found: names(found.into_iter()) }),
        }
    }
}

impl Gpu {
    /// The GPU that a driver calls `name`, such as `NVIDIA H100 80GB HBM3`: one whose model number is in the name, and of
    /// these one with as many of its other words as possible, the first for want of any.
    pub fn called(name: &str) -> Option<&'static Self> {
        let plain = name.to_lowercase().replace(['-', '_'], " ");
        let words: Vec<&str> = plain.split_whitespace().collect();
        let own = |gpu: &Self| gpu.name.to_lowercase();
        let is_there = |word: &str| words.contains(&word);
        let score = |gpu: &&Self| {
            let own = own(gpu);
            let mut parts = own.split_whitespace().filter(|word| *word != "rtx");
            let first = parts.next().is_some_and(is_there);
            first.then(|| parts.filter(|word| is_there(word)).count())
        };
        GPUS.iter()
            .rev()
            .filter_map(|gpu| Some((score(&gpu)?, gpu)))
            .max_by_key(|(n, _)| *n)
            .map(|(_, gpu)| gpu)
    }
}

fn names(gpus: impl Iterator<Item = &'static Gpu>) -> String {
    gpus.map(|gpu| gpu.name).collect::<Vec<_>>().join(", ")
}

/// A GPU name that says too little or too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownGpu {
    /// Nothing fits.
    #[error("no GPU `{query}` in the catalogue; known are {known}, and `all`")]
    None {
        /// What was asked for.
        query: String,
        /// What there is.
        known: String,
    },
    /// Several fit.
    #[error("`{query}` could be {found}; name one of them")]
    Several {
        /// What was asked for.
        query: String,
        /// What fits.
        found: String,
    },
}

/// What stands for a GPU that is not in the catalogue.
pub(crate) const SLOWEST: &Gpu = &GPUS[GPUS.len() - 1];

/// The catalogue, the slowest last. Peaks are the vendor's dense figures at boost clock.
pub const GPUS: &[Gpu] = &[
    Gpu {
        name: "B200",
        bf16_tflops: 2250.0,
        fp8_tflops: 4500.0,
        tf32_tflops: 1125.0,
        f32_tflops: 75.0,
        bandwidth_gb_per_s: 8000.0,
        memory_gb: 180.0,
        host_gb_per_s: 50.0,
        family: BLACKWELL,
        source: "NVIDIA HGX B200 product page, sparse figures halved",
    },
    Gpu {
        name: "H200",
        bf16_tflops: 989.4,
        fp8_tflops: 1978.9,
        tf32_tflops: 494.7,
        f32_tflops: 66.9,
        bandwidth_gb_per_s: 4800.0,
        memory_gb: 141.0,
        host_gb_per_s: 50.0,
        family: HOPPER,
        source: "NVIDIA H200 datasheet",
    },
    Gpu {
        name: "H100 SXM",
        bf16_tflops: 989.4,
        fp8_tflops: 1978.9,
        tf32_tflops: 494.7,
        f32_tflops: 66.9,
        bandwidth_gb_per_s: 3350.0,
        memory_gb: 80.0,
        host_gb_per_s: 50.0,
        family: HOPPER,
        source: "NVIDIA H100 datasheet and Hopper whitepaper",
    },
    Gpu {
        name: "H100 PCIe",
        bf16_tflops: 756.0,
        fp8_tflops: 1513.0,
        tf32_tflops: 378.0,
        f32_tflops: 51.2,
        bandwidth_gb_per_s: 2000.0,
        memory_gb: 80.0,
        host_gb_per_s: 50.0,
        family: HOPPER,
        source: "NVIDIA H100 datasheet and Hopper whitepaper",
    },
    Gpu {
        name: "A100 80GB",
        bf16_tflops: 312.0,
        fp8_tflops: 0.0,
        tf32_tflops: 156.0,
        f32_tflops: 19.5,
        bandwidth_gb_per_s: 2039.0,
        memory_gb: 80.0,
        host_gb_per_s: 25.0,
        family: AMPERE,
        source: "NVIDIA A100 datasheet, SXM",
    },
    Gpu {
        name: "A100 40GB",
        bf16_tflops: 312.0,
        fp8_tflops: 0.0,
        tf32_tflops: 156.0,
        f32_tflops: 19.5,
        bandwidth_gb_per_s: 1555.0,
        memory_gb: 40.0,
        host_gb_per_s: 25.0,
        family: AMPERE,
        source: "NVIDIA A100 datasheet, SXM",
    },
    Gpu {
        name: "L40S",
        bf16_tflops: 362.0,
        fp8_tflops: 733.0,
        tf32_tflops: 183.0,
        f32_tflops: 91.6,
        bandwidth_gb_per_s: 864.0,
        memory_gb: 48.0,
        host_gb_per_s: 25.0,
        family: ADA,
        source: "NVIDIA L40S datasheet",
    },
    Gpu {
        name: "RTX 5090",
        bf16_tflops: 209.5,
        fp8_tflops: 419.0,
        tf32_tflops: 104.8,
        f32_tflops: 104.8,
        bandwidth_gb_per_s: 1792.0,
        memory_gb: 32.0,
        host_gb_per_s: 50.0,
        family: BLACKWELL,
        source: "NVIDIA RTX Blackwell architecture whitepaper",
    },
    Gpu {
        name: "RTX 4090",
        bf16_tflops: 165.2,
        fp8_tflops: 330.3,
        tf32_tflops: 82.6,
        f32_tflops: 82.6,
        bandwidth_gb_per_s: 1008.0,
        memory_gb: 24.0,
        host_gb_per_s: 25.0,
        family: ADA,
        source: "NVIDIA Ada architecture whitepaper",
    },
    Gpu {
        name: "RTX 3090",
        bf16_tflops: 71.0,
        fp8_tflops: 0.0,
        tf32_tflops: 35.6,
        f32_tflops: 35.6,
        bandwidth_gb_per_s: 936.0,
        memory_gb: 24.0,
        host_gb_per_s: 25.0,
        family: AMPERE,
        source: "NVIDIA GA102 architecture whitepaper",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_found_by_what_people_write() {
        for (query, name) in [
            ("h100-sxm", "H100 SXM"),
            ("NVIDIA H100 PCIe", "H100 PCIe"),
            ("4090", "RTX 4090"),
            ("rtx_5090", "RTX 5090"),
            ("a100 40", "A100 40GB"),
            ("h200", "H200"),
        ] {
            assert_eq!(Gpu::find(query).map(|gpu| gpu.name), Ok(name), "{query}");
        }
        assert!(Gpu::find("h100").unwrap_err().to_string().contains("H100 SXM, H100 PCIe"));
        for nothing in ["", "tpu", "rtx"] {
            assert!(Gpu::find(nothing).unwrap_err().to_string().contains("RTX 3090"), "{nothing}");
        }
    }

    #[test]
    fn the_catalogue_is_plausible() {
        for gpu in GPUS {
            assert!(
                gpu.fp8_tflops == 0.0 || (1.9..2.1).contains(&(gpu.fp8_tflops / gpu.bf16_tflops)),
                "{}",
                gpu.name
            );
            assert!(gpu.f32_tflops <= gpu.tf32_tflops + 0.1, "{}", gpu.name);
            assert!(gpu.bandwidth_gb_per_s > 800.0 && gpu.memory_gb >= 24.0);
            assert_eq!(gpu.fp8_tflops > 0.0, gpu.family.gemm_fp8.share > 0.0, "{}", gpu.name);
        }
    }

    #[test]
    fn drivers_names_are_understood() {
        let called = |name| Gpu::called(name).map(|gpu| gpu.name);
        for (name, expected) in [
            ("NVIDIA H200", "H200"),
            ("NVIDIA H100 80GB HBM3", "H100 SXM"),
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ] {
            assert_eq!(called(name), Some(expected), "{name}");
        }
        assert_eq!(called("NVIDIA GeForce GTX 680"), None);
    }
}
