//! Held-out errors of the bare model and of the LoRA side by side, measured on the same images and noise.

use tenggat_train::job::ErrorWeights;
use tenggat_train::run::{LEVELS, Scores, Summary};

use crate::output;
use crate::when::plural;

/// Shows them, if both were measured.
pub fn show(summary: &Summary, weights: ErrorWeights) {
    if let (Some(before), Some(after)) = (&summary.before, &summary.after)
        && !summary.interrupted
    {
        output::block(&table(before, after, weights));
    }
}

/// `8`, or `5 of 16`.
fn part(n: usize, of: usize) -> String {
    if n == of { n.to_string() } else { format!("{n} of {of}") }
}

fn table(before: &Scores, after: &Scores, weights: ErrorWeights) -> String {
    let extent = after.extent;
    let title = format!("error on {} unseen images", part(extent.images, extent.all_images));
    let mut text = format!("{title:<44} {:>9} {:>9} {:>9}\n", "bare", "LoRA", "change");
    let mut row = |name: &str, a: f64, b: f64| {
        text += &format!("{name:<44} {a:>9.5} {b:>9.5} {:>+8.1}%\n", 100.0 * (b / a - 1.0));
    };
    let [captioned, empty] = [weights.captioned(), weights.empty()].map(|share| (share * 1e4).round() / 1e4);
    let shares = format!("{captioned} captioned + {empty} empty");
    row(&format!("image, {shares}"), before.picture.total(weights), after.picture.total(weights));
    row("  captioned", before.picture.captioned, after.picture.captioned);
    row("  empty prompt", before.picture.empty, after.picture.empty);
    if let (Some(before), Some(after)) = (before.velocity, after.velocity) {
        let name = format!("velocity at {} noise levels, likewise", part(extent.levels, LEVELS));
        row(&name, before.total(weights), after.total(weights));
        row("  captioned", before.captioned, after.captioned);
        row("  empty prompt", before.empty, after.empty);
    }
    let seeds = plural(after.seeds, "seed");
    text + &format!("(both on the same images and noise; images are means of {seeds})\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenggat_train::measure::score::HeldOutError;
    use tenggat_train::run::Extent;

    #[test]
    fn it_says_on_how_much_was_measured() {
        let scores = |factor: f64, extent| {
            let error = HeldOutError { captioned: 0.02 * factor, empty: 0.04 * factor };
            Scores { trained: factor < 1.0, picture: error, velocity: Some(error), seeds: 1, extent }
        };
        let half = Extent { images: 4, all_images: 8, levels: 5 };
        let text = table(&scores(1.0, half), &scores(0.5, half), ErrorWeights::default());
        assert!(text.starts_with("error on 4 of 8 unseen images "), "{text}");
        assert!(text.contains("velocity at 5 of 16 noise levels"), "{text}");
        // ¼ · 0.02 + ¾ · 0.04.
        assert!(text.contains("0.25 captioned + 0.75 empty") && text.contains("0.03500"), "{text}");
        assert_eq!(text.matches("-50.0%").count(), 6, "{text}");
        let whole = Extent { images: 8, all_images: 8, levels: 16 };
        let text = table(&scores(1.0, whole), &scores(0.5, whole), ErrorWeights::default());
        assert!(
            text.starts_with("error on 8 unseen images ") && text.contains("at 16 noise levels"),
            "{text}"
        );
    }
}
