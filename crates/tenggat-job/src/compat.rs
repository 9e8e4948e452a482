//! Upstream's bugs, which `compat` brings back one by one.

use super::suggest;

/// Bugs of ai-toolkit that the job turns on. All are off by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compat {
    /// Captions are not trimmed, and "a, b" becomes "a,  b".
    pub caption_spaces: bool,
    /// A missing `neg` is the prompt "False", and `samples` cannot say otherwise.
    pub negative_false: bool,
    /// A file named after step N holds N + 1 updates, and its metadata say N.
    pub step_names: bool,
    /// Accumulated gradients are summed, not averaged.
    pub summed_gradients: bool,
    /// `lr_scheduler: linear` rises from a third of the rate to the whole.
    pub linear_ramp: bool,
    /// Averaged weights start without a warm-up, from the untrained LoRA.
    pub constant_ema: bool,
    /// `gradient_checkpointing: true` computes every block twice, also where memory would hold more.
    pub checkpoint_all: bool,
}

type Flag = fn(&mut Compat) -> &mut bool;

const FLAGS: [(&str, Flag); 7] = [
    ("caption-spaces", |c| &mut c.caption_spaces),
    ("negative-false", |c| &mut c.negative_false),
    ("step-names", |c| &mut c.step_names),
    ("summed-gradients", |c| &mut c.summed_gradients),
    ("linear-ramp", |c| &mut c.linear_ramp),
    ("constant-ema", |c| &mut c.constant_ema),
    ("checkpoint-all", |c| &mut c.checkpoint_all),
];

impl Compat {
    /// Everything as ai-toolkit does it.
    pub fn ai_toolkit() -> Self {
        let mut all = Compat::default();
        FLAGS.iter().for_each(|(_, flag)| *flag(&mut all) = true);
        all
    }

    /// Turns on what a name stands for: `ai-toolkit` for everything, or one bug.
    pub(super) fn turn_on(&mut self, name: &str) -> Result<(), String> {
        if name == "ai-toolkit" {
            *self = Compat::ai_toolkit();
            return Ok(());
        }
        match FLAGS.iter().find(|(n, _)| *n == name) {
            Some((_, flag)) => *flag(self) = true,
            None => {
                let names = || std::iter::once("ai-toolkit").chain(FLAGS.iter().map(|(n, _)| *n));
                return Err(match suggest::nearest(name, names()) {
                    Some(near) => format!("`{name}` is not known; did you mean `{near}`?"),
                    None => format!(
                        "`{name}` is not known; expected one of {}",
                        names().collect::<Vec<_>>().join(", ")
                    ),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_turn_on_one_bug_or_all() {
        let mut compat = Compat::default();
        compat.turn_on("step-names").unwrap();
        assert_eq!(compat, Compat { step_names: true, ..Compat::default() });
        compat.turn_on("ai-toolkit").unwrap();
        assert!(compat.caption_spaces && compat.constant_ema && compat.linear_ramp);
        assert!(compat.turn_on("steps-names").unwrap_err().contains("`step-names`"));
        assert!(compat.turn_on("everything").unwrap_err().contains("ai-toolkit, caption-spaces"));
    }
}
