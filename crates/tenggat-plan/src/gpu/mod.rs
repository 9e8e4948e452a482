//! GPUs: what vendors state, and how much of it is reached.

mod catalogue;
mod described;
mod family;

use std::borrow::Cow;

use serde::Serialize;

pub use catalogue::GPUS;
pub use described::GpuDescriptionError;
pub use family::{Efficiency, EfficiencySource, Family};

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gpu {
    /// Name on the command line.
    pub name: Cow<'static, str>,
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
    /// The GPU whose name has all the words of `query`, or words that begin so; letters' case and punctuation
    /// aside. Of several the one with nothing besides these words: `4080` is an RTX 4080, not an RTX 4080
    /// Super.
    ///
    /// # Errors
    /// [`UnknownGpu`] if there is none, or more than one.
    pub fn find(query: &str) -> Result<&'static Self, UnknownGpu> {
        let wanted = words(query);
        let is_meant = |gpu: &&Self| {
            let own = words(&gpu.name);
            let has = |word: &String| own.iter().any(|own| own.starts_with(word.as_str()));
            !wanted.is_empty() && wanted.iter().all(has)
        };
        let found: Vec<&'static Self> = GPUS.iter().filter(is_meant).collect();
        let exact: Vec<&'static Self> =
            found.iter().copied().filter(|gpu| words(&gpu.name) == wanted).collect();
        match (&found[..], &exact[..]) {
            ([gpu], _) | (_, [gpu]) => Ok(gpu),
            ([], _) => Err(UnknownGpu::None { query: query.to_owned(), known: names(GPUS.iter()) }),
            _ => Err(UnknownGpu::Several { query: query.to_owned(), found: names(found.into_iter()) }),
        }
    }

    /// The GPU that a driver calls `name`, such as `NVIDIA H100 80GB HBM3`: one whose model number is in the
    /// name, and of these one with as many of its other words there, and as few that are not, as possible;
    /// the first for want of any.
    pub fn called(name: &str) -> Option<&'static Self> {
        let theirs = words(name);
        let score = |gpu: &&Self| {
            let own = words(&gpu.name);
            let (first, others) = own.split_first()?;
            let there = others.iter().filter(|word| theirs.contains(word)).count();
            theirs.contains(first).then(|| (there, usize::MAX - (others.len() - there)))
        };
        GPUS.iter()
            .rev()
            .filter_map(|gpu| Some((score(&gpu)?, gpu)))
            .max_by_key(|(n, _)| *n)
            .map(|(_, gpu)| gpu)
    }
}

/// The words of a card's name that tell it from others: `RTX 5070Ti` is `5070` and `ti`.
fn words(name: &str) -> Vec<String> {
    let mut spaced = String::new();
    let lower = name.to_lowercase().replace("max-q", "maxq");
    for (at, letter) in lower.char_indices() {
        let after_digit = spaced.ends_with(|c: char| c.is_ascii_digit());
        let rest = &lower[at..];
        let before_digit = rest.starts_with(|c: char| c.is_ascii_digit());
        let after_digit = after_digit && (rest.starts_with("ti") || rest.starts_with("super"));
        if after_digit || (before_digit && spaced.ends_with("rtx")) {
            spaced.push(' ');
        }
        spaced.push(if letter.is_alphanumeric() { letter } else { ' ' });
    }
    let told = |word: &&str| !["nvidia", "geforce", "rtx", "gpu"].contains(word);
    spaced.split_whitespace().filter(told).map(str::to_owned).collect()
}

fn names(gpus: impl Iterator<Item = &'static Gpu>) -> String {
    gpus.map(|gpu| gpu.name.as_ref()).collect::<Vec<_>>().join(", ")
}

/// A GPU name that says too little or too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownGpu {
    /// Nothing fits.
    #[error("no GPU `{query}` in the catalogue; use one of {known}, or `all`")]
    None {
        /// The requested name.
        query: String,
        /// What there is.
        known: String,
    },
    /// Several fit.
    #[error("`{query}` could be {found}; name one of them")]
    Several {
        /// The requested name.
        query: String,
        /// What fits.
        found: String,
    },
}

/// What stands for a GPU that is not in the catalogue: the slowest there is.
pub(crate) const SLOWEST: &Gpu = &GPUS[GPUS.len() - 1];

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
            ("4080", "RTX 4080"),
            ("4080 super", "RTX 4080 Super"),
            ("5070ti", "RTX 5070 Ti"),
            ("4070 Ti S", "RTX 4070 Ti Super"),
            ("rtx4060ti", "RTX 4060 Ti"),
            ("6000 ada", "RTX 6000 Ada"),
            ("pro 6000", "RTX PRO 6000"),
            ("a6000", "RTX A6000"),
            ("l4", "L4"),
            ("gb10", "GB10"),
        ] {
            assert_eq!(Gpu::find(query).map(|gpu| gpu.name.as_ref()), Ok(name), "{query}");
        }
        assert!(Gpu::find("h100").unwrap_err().to_string().contains("H100 SXM, H100 PCIe"));
        assert!(Gpu::find("6000").unwrap_err().to_string().contains("RTX PRO 6000"));
        for nothing in ["", "tpu", "rtx"] {
            assert!(Gpu::find(nothing).unwrap_err().to_string().contains("RTX 3090"), "{nothing}");
        }
    }

    #[test]
    fn every_card_is_found_by_its_own_name() {
        for gpu in GPUS {
            assert_eq!(Gpu::find(&gpu.name), Ok(gpu));
            assert_eq!(Gpu::called(&format!("NVIDIA {}", gpu.name)), Some(gpu), "{}", gpu.name);
        }
    }

    #[test]
    fn the_catalogue_is_plausible() {
        for gpu in GPUS {
            let ratio = gpu.fp8_tflops / gpu.bf16_tflops;
            assert!(gpu.fp8_tflops == 0.0 || (1.9..2.1).contains(&ratio), "{}", gpu.name);
            assert!(gpu.f32_tflops <= gpu.tf32_tflops + 0.1, "{}", gpu.name);
            assert!(gpu.bandwidth_gb_per_s > 250.0 && gpu.memory_gb >= 12.0, "{}", gpu.name);
            assert_eq!(gpu.fp8_tflops > 0.0, gpu.family.gemm_fp8.share > 0.0, "{}", gpu.name);
            let Family { gemm_bf16, attention_forward, attention_backward, .. } = gpu.family;
            assert!(gemm_bf16.share > attention_forward.share, "{}", gpu.name);
            assert!(attention_forward.share > attention_backward.share, "{}", gpu.name);
        }
        let reached = |gpu: &Gpu| gpu.bf16_tflops * gpu.family.gemm_bf16.share;
        assert!(GPUS.iter().all(|gpu| reached(gpu) >= reached(SLOWEST)));
    }

    #[test]
    fn drivers_names_are_understood() {
        let called = |name| Gpu::called(name).map(|gpu| gpu.name.as_ref());
        for (name, expected) in [
            ("NVIDIA H200", "H200"),
            ("NVIDIA H100 80GB HBM3", "H100 SXM"),
            ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
            ("NVIDIA GeForce RTX 3090", "RTX 3090"),
            ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"),
            ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti Super"),
            ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
            ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ] {
            assert_eq!(called(name), Some(expected), "{name}");
        }
        assert_eq!(called("NVIDIA GeForce GTX 680"), None);
    }
}
