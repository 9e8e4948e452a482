//! Which batches' passes are captured as CUDA graphs, and whether they are trusted.

use std::collections::HashMap;

use tenggat_models::Result;
use tenggat_models::lora::Lora;
use tenggat_models::transformer::{CapturedPasses, Inputs, Recompute};
use tenggat_tensor::ops::linear::Write;

/// Most captured passes that are kept: each holds several thousand kernels' arguments, on the GPU too.
const MOST: usize = 32;
/// How often captured passes may lose their memory in quick succession before capturing stops.
const MOST_LOST: usize = 3;
/// Steps after which another loss is no longer soon: what took the memory, such as sample pictures, comes
/// rarely.
const SOON: u64 = 50;
/// By how much loss and gradient norm may differ between the two ways: attention's backward pass adds up in
/// any order.
const TOLERANCE: f64 = 1e-2;

/// What captured passes are valid for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    samples: usize,
    /// Rows of the latents and of the text, padding included.
    latents: usize,
    text: usize,
    /// Strength of the adapter, by its bits.
    strength: u64,
    recompute: Recompute,
    adds: bool,
    has_dropout: bool,
}

impl Key {
    pub fn new(inputs: &Inputs<'_>, lora: &Lora, recompute: Recompute, write: Write) -> Self {
        Key {
            latents: inputs.latents.view().rows(),
            samples: inputs.text_lens.len(),
            text: inputs.text.view().rows(),
            strength: lora.scale.to_bits(),
            recompute,
            adds: write == Write::Add,
            has_dropout: lora.dropout.is_some(),
        }
    }

    /// What its memory grows with: tokens of images and captions.
    fn tokens(&self) -> usize {
        self.latents + self.text
    }
}

/// How a batch goes through the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Kernel by kernel.
    Direct,
    /// Kernel by kernel, and the passes may be captured after that.
    ToBeTried,
    /// As CUDA graphs.
    Captured,
}

#[derive(Debug)]
enum Known {
    /// It went through the model in this step.
    Seen(u64),
    /// It cannot be captured.
    Refused,
    Captured(Box<CapturedPasses>),
}

/// Captured passes by what they are valid for.
#[derive(Debug, Default)]
pub(super) struct Passes {
    known: HashMap<Key, Known>,
    step: u64,
    is_given_up: bool,
    /// Whether captured passes have reproduced the results of direct launches.
    is_trusted: bool,
    lost: usize,
    lost_in_step: u64,
    /// Most tokens of a batch that may be captured, now and at the latest loss, if there was one.
    largest: usize,
    largest_when_lost: Option<usize>,
    notes: Vec<String>,
}

impl Passes {
    /// A new step begins.
    pub fn begin_step(&mut self) {
        self.step += 1;
    }

    /// How such a batch goes through the model. It is captured in the second step that has one: then
    /// everything that depends on its shape exists, and it is likely to come again.
    pub fn way(&mut self, key: &Key) -> Way {
        if self.is_given_up {
            return Way::Direct;
        }
        match self.known.get(key) {
            Some(Known::Captured(_)) => Way::Captured,
            Some(Known::Refused) => Way::Direct,
            Some(&Known::Seen(step))
                if step < self.step && self.captured_passes() < MOST && self.has_room(key) =>
            {
                Way::ToBeTried
            }
            Some(Known::Seen(_)) => Way::Direct,
            None => {
                self.largest = self.largest.max(key.tokens());
                self.known.insert(key.clone(), Known::Seen(self.step));
                Way::Direct
            }
        }
    }

    /// Whether captures of such a batch may last, as far as is known.
    fn has_room(&self, key: &Key) -> bool {
        let is_captured = |(key, known): (&Key, &Known)| {
            key.tokens() >= self.largest && matches!(known, Known::Captured(_))
        };
        self.largest_when_lost.is_none() || key.tokens() >= self.largest || self.known.iter().any(is_captured)
    }

    /// Number of captured passes.
    pub fn captured_passes(&self) -> usize {
        self.known.values().filter(|known| matches!(known, Known::Captured(_))).count()
    }

    /// How often captured passes have lost their memory in quick succession.
    #[cfg(test)]
    pub fn lost_so_far(&self) -> usize {
        self.lost
    }

    pub fn captured(&mut self, key: &Key) -> Option<&mut CapturedPasses> {
        match self.known.get_mut(key) {
            Some(Known::Captured(captured)) => Some(captured),
            _ => None,
        }
    }

    /// Stores the result of a capture. Returns whether there are captured passes; the reason why not is only
    /// noted.
    pub fn keep(&mut self, key: Key, made: Result<Option<CapturedPasses>>) -> bool {
        let known = match made {
            Ok(Some(captured)) => Known::Captured(Box::new(captured)),
            Ok(None) => Known::Refused,
            Err(e) => {
                self.note(format!("some steps run without CUDA graphs: {e}"));
                Known::Refused
            }
        };
        let is_there = matches!(known, Known::Captured(_));
        self.known.insert(key, known);
        if !is_there {
            let may_be = self.known.iter().filter(|(_, known)| !matches!(known, Known::Refused));
            self.largest = may_be.map(|(key, _)| key.tokens()).max().unwrap_or(0);
        }
        is_there
    }

    pub fn are_trusted(&self) -> bool {
        self.is_trusted
    }

    /// Trusts captured passes if loss and gradient norm are the same both ways, else uses none.
    pub fn compare(&mut self, direct: [f64; 2], captured: [f64; 2]) {
        // NaN agrees with nothing.
        let agree = |(a, b): (f64, f64)| (a - b).abs() <= TOLERANCE * a.abs();
        if !direct.into_iter().zip(captured).all(agree) && direct.iter().all(|x| x.is_finite()) {
            let [loss, norm] = direct;
            let [other_loss, other_norm] = captured;
            self.give_up(Some(format!(
                "a CUDA graph gave loss {other_loss:.6} and gradient norm {other_norm:.6}, direct launches \
                 {loss:.6} and {norm:.6}; CUDA graphs are not used"
            )));
        } else {
            self.is_trusted = true;
        }
    }

    /// The device has taken the memory of captured passes, which invalidates all of them. Losses to a batch
    /// that is larger than any before are not held against captures: the next ones have room for it.
    pub fn lost(&mut self) {
        self.known.retain(|_, known| !matches!(known, Known::Captured(_)));
        let has_grown = self.largest_when_lost.is_none_or(|before| self.largest > before);
        if has_grown || self.step - self.lost_in_step > SOON {
            self.lost = 0;
        }
        self.lost += 1;
        self.lost_in_step = self.step;
        self.largest_when_lost = Some(self.largest);
        if self.lost >= MOST_LOST {
            self.give_up(Some(
                "the GPU has no memory for CUDA graphs; kernels are launched one by one".into(),
            ));
        }
    }

    /// Begins anew.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Stops capturing, for this reason.
    pub fn give_up(&mut self, why: Option<String>) {
        self.forget();
        self.is_given_up = true;
        why.into_iter().for_each(|why| self.note(why));
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: usize) -> Key {
        Key {
            samples: 1,
            latents: 4,
            text,
            strength: 0,
            recompute: Recompute::NOTHING,
            adds: false,
            has_dropout: false,
        }
    }

    /// Once memory was short, the largest batch is captured before others.
    #[test]
    fn after_a_loss_the_largest_batch_comes_first() {
        let mut passes = Passes::default();
        for text in [8, 24, 16] {
            passes.begin_step();
            assert_eq!(passes.way(&key(text)), Way::Direct);
        }
        passes.begin_step();
        assert_eq!(passes.way(&key(8)), Way::ToBeTried);
        passes.lost();
        passes.begin_step();
        assert_eq!(passes.way(&key(8)), Way::Direct);
        assert_eq!(passes.way(&key(24)), Way::ToBeTried);
        // The largest cannot be captured: the next one is the largest that can.
        passes.keep(key(24), Ok(None));
        assert_eq!(passes.way(&key(8)), Way::Direct);
        assert_eq!(passes.way(&key(16)), Way::ToBeTried);
    }

    /// Each batch larger than all before it takes the memory of captures, however soon: they stay in use.
    #[test]
    fn losses_to_ever_larger_batches_do_not_end_captures() {
        let mut passes = Passes::default();
        for text in 1..10 {
            passes.begin_step();
            passes.way(&key(text));
            passes.lost();
        }
        assert!(!passes.is_given_up && passes.take_notes().is_empty());
        for _ in 1..MOST_LOST {
            passes.lost();
        }
        assert!(passes.is_given_up);
    }

    /// Losses that follow one another end captures; such as sample pictures cause do not, however many there
    /// are.
    #[test]
    fn rare_losses_do_not_end_captures() {
        let key = key(8);
        let may_capture = |steps_between: u64| {
            let mut passes = Passes::default();
            for _ in 0..4 {
                (0..steps_between).for_each(|_| passes.begin_step());
                passes.lost();
            }
            passes.begin_step();
            passes.way(&key);
            passes.begin_step();
            passes.way(&key) == Way::ToBeTried
        };
        assert!(may_capture(SOON + 1));
        assert!(!may_capture(SOON));
    }
}
