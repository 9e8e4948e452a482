//! What training has changed so far: the adapter, its average and the loss curve.

use tenggat_models::lora::Lora;

use super::event::Event;
use super::{Error, Result};
use crate::lora::average::Ema;
use crate::outcome::metrics::Record;
use crate::outcome::report::Point;
use crate::step::{Outcome, Trainer};

/// Steps in a row without a usable loss after which a run is given up.
const MAX_UNUSABLE: u64 = 20;
/// A run that ends with this many has failed: a single one may be a bad batch.
const MAX_UNUSABLE_AT_END: u64 = 3;
/// Weight of the newest loss in the smoothed one.
const SMOOTHING: f64 = 0.02;

/// An update of the weights.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Update {
    /// Number of its step, from 1.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
}

/// What training has changed so far.
pub(super) struct Trained<'a> {
    pub trainer: Trainer<'a>,
    pub ema: Option<Ema>,
    pub curve: Vec<Point>,
    /// Loss averaged over about the last 50 steps.
    pub smoothed: f64,
    /// Updates skipped in a row until now.
    unusable: u64,
    pub last_update: Option<Update>,
}

impl<'a> Trained<'a> {
    pub fn new(trainer: Trainer<'a>, ema: Option<Ema>) -> Self {
        Trained { trainer, ema, curve: Vec::new(), smoothed: f64::NAN, unusable: 0, last_update: None }
    }

    /// The adapter that is saved and scored: the average if there is one.
    pub fn best(&self) -> &Lora {
        self.ema.as_ref().map_or(self.trainer.lora(), Ema::average)
    }

    /// Whether the last updates were skipped, so that the weights may be worthless.
    pub fn is_skipping(&self) -> bool {
        self.unusable > 0
    }

    /// The error of a run whose last updates were all skipped.
    pub fn diverged(&self, step: u64) -> Option<Error> {
        let lr = self.last_update.map_or(0.0, |update| update.lr);
        (self.unusable >= MAX_UNUSABLE_AT_END).then_some(Error::Diverged { step, times: self.unusable, lr })
    }

    /// Adds a step to the loss curve; gives up after too many steps without a usable loss.
    ///
    /// # Errors
    /// The training diverged.
    pub fn add_step(
        &mut self,
        step: u64,
        outcome: Outcome,
        lr: f64,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        if !outcome.updated {
            self.unusable += 1;
            if self.unusable >= MAX_UNUSABLE {
                return Err(Error::Diverged { step: step + 1, times: self.unusable, lr });
            }
            let text =
                format!("step {}: the loss or a gradient is not a number; the update is skipped", step + 1);
            show(Event::Warning(text));
            return Ok(());
        }
        self.last_update = Some(Update { step: step + 1, lr });
        self.add(Point { step: step + 1, loss: outcome.loss, lr });
        Ok(())
    }

    /// Restores the curve of a run that is resumed.
    pub fn restore_curve(&mut self, records: &[Record]) {
        for record in records {
            if record.loss.is_finite() && record.grad_norm.is_finite() {
                self.last_update = Some(Update { step: record.step, lr: record.lr });
                self.add(Point { step: record.step, loss: record.loss, lr: record.lr });
            } else {
                self.unusable += 1;
            }
        }
    }

    fn add(&mut self, point: Point) {
        self.unusable = 0;
        self.curve.push(point);
        let weight = SMOOTHING.max(1.0 / self.curve.len() as f64);
        let before = if self.smoothed.is_nan() { point.loss } else { self.smoothed };
        self.smoothed = before + weight * (point.loss - before);
    }
}
