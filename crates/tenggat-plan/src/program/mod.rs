//! Programs that train the same job elsewhere, so that a user sees what it would take there.
//!
//! A program is a profile (`catalogue.rs`): how it expands quantised weights, in which type its adapters run,
//! how much it fuses, what it keeps. Its step follows from the profile and the model's dimensions
//! (`work.rs`), and so does its memory (`memory.rs`).

mod catalogue;
mod memory;
mod profile;
mod work;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use profile::{Adapters, Compiles, Expansion, ProgramProfile, Swap};
pub use work::{ProgramStep, Sequence};

/// A program that trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// This one.
    Tenggat,
    /// ostris/ai-toolkit since 27 July 2026 (0.12.26).
    AiToolkit,
    /// ostris/ai-toolkit before that.
    #[serde(rename = "ai-toolkit-2025")]
    AiToolkit2025,
    /// kohya-ss/musubi-tuner.
    Musubi,
    /// Nerogar/OneTrainer.
    OneTrainer,
    /// bghira/SimpleTuner.
    SimpleTuner,
    /// The training scripts of huggingface/diffusers.
    Diffusers,
    /// modelscope/DiffSynth-Studio.
    DiffSynth,
    /// tsiendragon/qwen-image-finetune.
    Qflux,
    /// kohya-ss/sd-scripts.
    SdScripts,
    /// unslothai/unsloth.
    Unsloth,
    /// shootthesound/Fizgig.
    Fizgig,
}

impl Program {
    /// How it trains; `None` for this program, whose step is planned operation by operation.
    pub fn profile(self) -> Option<&'static ProgramProfile> {
        catalogue::PROGRAMS.iter().find(|profile| profile.program == self)
    }

    /// All there are, this one first.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Tenggat).chain(catalogue::PROGRAMS.iter().map(|profile| profile.program))
    }

    /// The same program in the newest version that there is a profile of: reports of old versions are better
    /// than none.
    pub fn newest(self) -> Self {
        if self == Self::AiToolkit2025 { Self::AiToolkit } else { self }
    }

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        self.profile().map_or("tenggat", |profile| profile.name)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A program that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown trainer `{name}`; use {known}")]
pub struct UnknownProgram {
    name: String,
    known: String,
}

/// First version of ai-toolkit that unpacks 2- to 7-bit weights with its own code.
const AI_TOOLKIT_OWN_QUANTISATION: [u64; 3] = [0, 12, 26];

impl FromStr for Program {
    type Err = UnknownProgram;

    /// Reads a name or a repository, with a version behind `@` where it matters: `ai-toolkit@0.11.3`.
    fn from_str(text: &str) -> Result<Self, UnknownProgram> {
        let (name, version) = text.split_once('@').map_or((text, None), |(name, v)| (name, Some(v)));
        let plain = |name: &str| -> String {
            name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
        };
        let wanted = plain(name.trim().rsplit('/').next().unwrap_or(name));
        let is_called = |program: &Self| {
            let aliases = program.profile().map_or(&[][..], |profile| profile.aliases);
            plain(program.name()) == wanted || aliases.iter().any(|alias| plain(alias) == wanted)
        };
        let found = Self::all().find(is_called).ok_or_else(|| UnknownProgram {
            name: text.trim().to_owned(),
            known: Self::all().map(Self::name).collect::<Vec<_>>().join(", "),
        })?;
        let is_old = version.is_some_and(|version| numbers(version) < AI_TOOLKIT_OWN_QUANTISATION.to_vec());
        Ok(if found == Self::AiToolkit && is_old { Self::AiToolkit2025 } else { found })
    }
}

/// The numbers of a version: `v0.12.26` is 0, 12, 26.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_name_repository_and_version() {
        for (text, program) in [
            ("tenggat", Program::Tenggat),
            ("ai_toolkit", Program::AiToolkit),
            ("ostris/ai-toolkit", Program::AiToolkit),
            ("ai-toolkit@0.13.1", Program::AiToolkit),
            ("ai-toolkit@0.11.3", Program::AiToolkit2025),
            ("musubi", Program::Musubi),
            ("kohya-ss/musubi-tuner", Program::Musubi),
            ("OneTrainer", Program::OneTrainer),
        ] {
            assert_eq!(text.parse(), Ok(program), "{text}");
        }
        let error = "kohya".parse::<Program>().unwrap_err().to_string();
        assert!(error.contains("ai-toolkit") && error.contains("musubi-tuner"), "{error}");
    }

    #[test]
    fn every_program_survives_its_name_and_json() {
        for program in Program::all() {
            assert_eq!(program.name().parse(), Ok(program));
            let text = serde_json::to_string(&program).unwrap();
            assert_eq!(serde_json::from_str::<Program>(&text).unwrap(), program);
        }
    }
}
