//! What a run writes for TensorBoard: its steps, held-out errors and samples.

use super::training::Training;
use crate::measure::score::Weighed;
use crate::outcome::metrics::Record;

/// A number by the name that TensorBoard shows.
type Named = (&'static str, f64);

impl Training<'_, '_> {
    /// Adds a step.
    pub(super) fn board_step(&mut self, record: &Record) {
        let values = [
            ("loss/loss", record.loss),
            ("lr", record.lr),
            ("grad_norm", record.grad_norm),
            ("s_per_step", record.s_per_step),
        ];
        let val = record.val_loss.map(|loss| ("val/loss", loss));
        self.board_numbers(record.step, &values.into_iter().chain(val).collect::<Vec<_>>());
    }

    /// Adds an error on held-out images; `what` is what was measured.
    pub(super) fn board_error(&mut self, step: u64, what: HeldOutMeasure, weighed: Weighed) {
        let [total, captioned, empty] = what.names();
        let error = weighed.error;
        let values = [(total, weighed.total), (captioned, error.captioned), (empty, error.empty)];
        self.board_numbers(step, &values);
    }

    /// Adds the samples of this step that are in the run's folder.
    pub(super) fn board_samples(&mut self, step: u64) {
        if self.board.is_none() {
            return;
        }
        let folder = self.folder.path().to_path_buf();
        for sample in tenggat_runs::samples(&folder).into_iter().filter(|sample| sample.step == step) {
            // A sample that cannot be read has been reported by whoever could not write it.
            let Ok(bytes) = std::fs::read(folder.join(&sample.file)) else { continue };
            let Ok(size) = image::image_dimensions(folder.join(&sample.file)) else { continue };
            let Some(board) = &mut self.board else { return };
            if let Err(e) = board.image(step, &format!("samples/{}", sample.prompt), &bytes, size) {
                self.give_up_board(&e);
            }
        }
    }

    fn board_numbers(&mut self, step: u64, values: &[Named]) {
        if let Some(board) = &mut self.board
            && let Err(e) = board.scalars(step, values)
        {
            self.give_up_board(&e);
        }
    }

    fn give_up_board(&mut self, why: &std::io::Error) {
        if let Some(board) = self.board.take() {
            self.time.warn(format!("{} is no longer written: {why}", board.path().display()));
        }
    }
}

/// Which error on held-out images.
#[derive(Debug, Clone, Copy)]
pub(super) enum HeldOutMeasure {
    /// Of predicted velocities.
    Velocity,
    /// Of redrawn images.
    Picture,
}

impl HeldOutMeasure {
    /// Names of the total, of the error with captions and of that with the empty prompt.
    fn names(self) -> [&'static str; 3] {
        match self {
            HeldOutMeasure::Velocity => {
                ["held_out/error", "held_out/error_captioned", "held_out/error_empty"]
            }
            HeldOutMeasure::Picture => {
                ["held_out/image_error", "held_out/image_error_captioned", "held_out/image_error_empty"]
            }
        }
    }
}
