//! Which vector instructions the kernels with hand-written code for them may use.

use std::sync::OnceLock;

/// Sets of instructions, each with those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the libraries choose by themselves.
    Portable,
    /// AVX-512 F and BW.
    Avx512,
    /// Dot products of bf16.
    Avx512Bf16,
}

/// Caps the level: `portable`, `avx512` or `avx512bf16`, for tests and for comparison.
const VARIABLE: &str = "TENGGAT_CPU_LEVEL";

impl Level {
    /// What this processor has, or less if the environment says so; found out once.
    pub fn current() -> Self {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let cap = match std::env::var(VARIABLE).as_deref() {
                Ok("portable") => Level::Portable,
                Ok("avx512") => Level::Avx512,
                _ => Level::Avx512Bf16,
            };
            cap.min(Self::detected())
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn detected() -> Self {
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        match (avx512, is_x86_feature_detected!("avx512bf16")) {
            (true, true) => Level::Avx512Bf16,
            (true, false) => Level::Avx512,
            (false, _) => Level::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detected() -> Self {
        Level::Portable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tests of all ops once more, in processes that may use less than this machine has.
    #[test]
    fn ops_are_right_at_every_level() {
        for (level, name) in [(Level::Portable, "portable"), (Level::Avx512, "avx512")] {
            if level >= Level::current() {
                eprintln!("skipped: this processor has no more than {level:?}");
                continue;
            }
            let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
            let output = tests.arg("ops::").env(VARIABLE, name).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && !text.contains(" 0 passed"), "{name}:\n{text}");
        }
    }
}
