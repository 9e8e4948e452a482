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
    /// Products of bf16 tiles.
    Amx,
}

/// Caps the level: `portable`, `avx512` or `avx512bf16`, for tests and for comparison. `amx` allows the tile
/// unit, which is never chosen by itself: no processor that has it has passed its tests yet. With
/// `emulated-amx` tests compute tiles without the unit.
const VARIABLE: &str = "TENGGAT_CPU_LEVEL";

/// Whether tiles are multiplied by plain code: in tests, if the environment says so.
pub fn tiles_are_emulated() -> bool {
    static EMULATED: OnceLock<bool> = OnceLock::new();
    cfg!(test) && *EMULATED.get_or_init(|| std::env::var(VARIABLE).as_deref() == Ok("emulated-amx"))
}

impl Level {
    /// What this processor has, or less if the environment says so; found out once.
    pub fn current() -> Self {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let cap = match std::env::var(VARIABLE).as_deref() {
                Ok("portable") => Level::Portable,
                Ok("avx512") => Level::Avx512,
                Ok("avx512bf16") => Level::Avx512Bf16,
                Ok("amx") => Level::Amx,
                _ => Level::Avx512Bf16,
            };
            let detected = Self::detected(cap);
            if tiles_are_emulated() && detected >= Level::Avx512Bf16 { Level::Amx } else { cap.min(detected) }
        })
    }

    /// The highest level up to `cap` that the processor has, except that the tile unit is only asked for if
    /// wanted: Linux keeps more state for a process that has asked.
    #[cfg(target_arch = "x86_64")]
    fn detected(cap: Level) -> Self {
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        match (avx512, is_x86_feature_detected!("avx512bf16")) {
            (true, true) if cap >= Level::Amx && super::amx::available() => Level::Amx,
            (true, true) => Level::Avx512Bf16,
            (true, false) => Level::Avx512,
            (false, _) => Level::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detected(_cap: Level) -> Self {
        Level::Portable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tests of all ops once more, in processes that may use less than this machine has.
    #[test]
    fn ops_are_right_at_every_level() {
        let current = Level::current();
        for (name, there) in [
            ("portable", Level::Portable < current),
            ("avx512", Level::Avx512 < current),
            ("avx512bf16", Level::Avx512Bf16 < current),
            ("emulated-amx", Level::Avx512Bf16 <= current),
            ("amx", Level::detected(Level::Amx) == Level::Amx),
        ] {
            if !there {
                tenggat_skip::skipped(format!("for this processor {name} is no difference, or too much"));
                continue;
            }
            let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
            let output = tests.args(["ops::", "weight::"]).env(VARIABLE, name).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && !text.contains(" 0 passed"), "{name}:\n{text}");
        }
    }
}
