//! The images that a run leaves: the loss curve, and held-out images before and after.

use image::RgbImage;

use super::Result;
use super::event::Event;
use super::folder::RunFolder;
use crate::job::Job;
use crate::measure::before_and_after::Redrawn;
use crate::outcome::report::plot::{self, Plot};
use crate::outcome::report::sheet::{self, Row, Sheet};
use crate::outcome::report::{self, Point};

/// Writes `loss.png`, and `sheet.png` if held-out pictures were redrawn both ways.
pub(super) fn write(
    job: &Job,
    folder: &RunFolder,
    curve: &[Point],
    redrawn: &[Redrawn<'_>],
    show: &mut dyn FnMut(Event),
) -> Result<()> {
    let name = job.name.as_str();
    if !curve.is_empty() {
        let path = folder.file("loss.png");
        let (title, rank, lr) = (format!("{name}: training loss"), job.network.rank, job.train.lr);
        let subtitle = format!("{} steps, rank {rank}, peak learning rate {lr:e}", curve.len());
        let plot = Plot { title: &title, subtitle: &subtitle, points: curve, deadline: None };
        plot::save(&plot, &path)?;
        show(Event::Wrote { what: "loss curve", path });
    }
    let rows = redrawn.iter().map(rows).collect::<Result<Vec<_>, report::Error>>()?;
    let rows = rows.concat();
    if !rows.is_empty() {
        let path = folder.file("sheet.png");
        let sheet = Sheet {
            title: &format!("{name}: images that were not trained on"),
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

fn rows(group: &Redrawn<'_>) -> Result<Vec<Row>, report::Error> {
    let row = |(i, label): (usize, &String)| {
        let pictures = [group.truth, group.bare, group.trained].map(|t| report::to_rgb(t, i));
        let [truth, bare, trained] = pictures;
        let (truth, bare, trained) = (truth?, bare?, trained?);
        let note = format!("{:.4} → {:.4}", difference(&truth, &bare), difference(&truth, &trained));
        Ok(Row { label: label.clone(), note, pictures: vec![truth, bare, trained] })
    };
    group.labels.iter().enumerate().map(row).collect()
}

/// Mean squared difference in [0, 1].
fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares =
        a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| ((f64::from(*a) - f64::from(*b)) / 255.0).powi(2));
    squares.sum::<f64>() / a.as_raw().len().max(1) as f64
}
