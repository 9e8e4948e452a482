//! The images that a run leaves: the loss curve, and held-out images before and after.

use image::RgbImage;

use super::Result;
use super::event::Event;
use super::folder::RunFolder;
use super::live_curve::Drawing;
use crate::job::Job;
use crate::measure::before_and_after::Redrawn;
use crate::outcome::report::plot::{self, Plot};
use crate::outcome::report::sheet::{self, Row, Sheet};
use crate::outcome::report::{self, Point};

/// Most images on the sheet.
const MOST_ROWS: usize = 4;

/// Title and subtitle of the loss curve.
pub(super) fn titles(job: &Job, steps: usize) -> (String, String) {
    let (name, rank, lr) = (&job.name, job.network.rank, job.train.lr);
    (format!("{name}: training loss"), format!("{steps} steps, rank {rank}, peak learning rate {lr:e}"))
}

/// Draws the loss curve of a run under way, which may fail: the end draws it again.
pub(super) fn draw(drawing: &Drawing) {
    let Drawing { title, subtitle, points, resumes, path } = drawing;
    // A folder that was renamed meanwhile is not created again for it.
    if path.parent().is_some_and(std::path::Path::is_dir) {
        let _ = plot::save(&Plot { title, subtitle, points, resumes, deadline: None }, path);
    }
}

/// Writes `loss.png`, and `sheet.png` if held-out pictures were redrawn both ways.
pub(super) fn write(
    job: &Job,
    folder: &RunFolder,
    (curve, resumes): (&[Point], &[u64]),
    redrawn: &[Redrawn<'_>],
    show: &mut dyn FnMut(Event),
) -> Result<()> {
    let name = job.name.as_str();
    if !curve.is_empty() {
        let path = folder.file("loss.png");
        let (title, subtitle) = titles(job, curve.len());
        let plot = Plot { title: &title, subtitle: &subtitle, points: curve, resumes, deadline: None };
        plot::save(&plot, &path)?;
        show(Event::Wrote { what: "loss curve", path });
    }
    let compared = redrawn.iter().map(rows).collect::<Result<Vec<_>, report::Error>>()?.concat();
    if !compared.is_empty() {
        let all = compared.len();
        let rows = most_changed(compared);
        let title = match rows.len() {
            shown if shown < all => {
                format!("{name}: the {shown} of {all} unseen images whose errors changed most")
            }
            _ => format!("{name}: images that were not trained on"),
        };
        let path = folder.file("sheet.png");
        let sheet = Sheet {
            title: &title,
            subtitle: "Each was noised to 75 % and redrawn from its caption with the same noise; numbers are \
                errors.",
            columns: &["truth", "bare model", "with the LoRA"],
            rows: &rows,
        };
        sheet::save(&sheet, &path)?;
        show(Event::Wrote { what: "before/after", path });
    }
    Ok(())
}

/// A row of the sheet, and its error before and after.
type Compared = (Row, [f64; 2]);

/// The rows whose errors changed by the largest factor, for better or worse, in the order in which they were.
fn most_changed(compared: Vec<Compared>) -> Vec<Row> {
    // Errors of nothing are no numbers, which `max` would take for the smallest.
    let factor = |errors: [f64; 2]| match errors.map(f64::is_finite) {
        [true, true] => (errors[1].max(1e-12) / errors[0].max(1e-12)).ln().abs(),
        _ => 0.0,
    };
    let mut order: Vec<usize> = (0..compared.len()).collect();
    order.sort_by(|&a, &b| factor(compared[b].1).total_cmp(&factor(compared[a].1)).then(a.cmp(&b)));
    order.truncate(MOST_ROWS);
    let shown = compared.into_iter().enumerate().filter(|(i, _)| order.contains(i));
    shown.map(|(_, (row, _))| row).collect()
}

fn rows(group: &Redrawn<'_>) -> Result<Vec<Compared>, report::Error> {
    let row = |(i, label): (usize, &String)| {
        let pictures = [group.truth, group.bare, group.trained].map(|t| report::to_rgb(t, i));
        let [truth, bare, trained] = pictures;
        let (truth, bare, trained) = (truth?, bare?, trained?);
        let errors = [&bare, &trained].map(|drawn| difference(&truth, drawn));
        let note = format!("{:.4} → {:.4}", errors[0], errors[1]);
        Ok((Row { label: label.clone(), note, pictures: vec![truth, bare, trained] }, errors))
    };
    group.labels.iter().enumerate().map(row).collect()
}

/// Mean squared difference in [0, 1].
fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares =
        a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| ((f64::from(*a) - f64::from(*b)) / 255.0).powi(2));
    squares.sum::<f64>() / a.as_raw().len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_that_changed_most_are_shown_in_their_order() {
        let compared = |label: &str, errors| {
            (Row { label: label.into(), note: String::new(), pictures: Vec::new() }, errors)
        };
        let all = [
            ("a", [0.04, 0.039]),
            ("b", [0.04, 0.02]),
            ("worse", [0.02, 0.04]),
            ("c", [0.04, 0.03]),
            ("nothing", [f64::NAN, 0.1]),
            ("d", [0.09, 0.03]),
        ];
        let labels = |n: usize| -> Vec<String> {
            let compared = all[..n].iter().map(|&(label, errors)| compared(label, errors)).collect();
            most_changed(compared).into_iter().map(|row| row.label).collect()
        };
        assert_eq!(labels(6), ["b", "worse", "c", "d"]);
        assert_eq!(labels(3), ["a", "b", "worse"]);
    }
}
