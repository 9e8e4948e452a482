//! The loss curve: a dot a step, the trend, the learning rate, the deadline.

use std::path::Path;

use super::picture::{Error, save_rgb};
use super::svg::{Style, Svg, width};
use super::{Point, axis};

/// What is plotted.
#[derive(Debug, Clone, Copy)]
pub struct Plot<'a> {
    /// Bold, above.
    pub title: &'a str,
    /// Below the title.
    pub subtitle: &'a str,
    /// Steps in order; losses that are no numbers are left out.
    pub points: &'a [Point],
    /// Steps at which the run was resumed.
    pub resumes: &'a [u64],
    /// Where the deadline is on the axis of steps, and what is written there.
    pub deadline: Option<(f64, &'a str)>,
}

const PAGE: (f64, f64) = (960.0, 540.0);
/// Pixels to a unit of the page.
const SCALE: f64 = 2.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 82.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = 58.0;

const INK: &str = "#1f2933";
const GREY: &str = "#66727f";
const LOSS: &str = "#1f6fb4";
const RATE: &str = "#d97706";
const END: &str = "#c0392b";
/// Look of the line where a run was resumed.
const RESUMED: &str = "stroke=\"#66727f\" stroke-width=\"1.4\" stroke-dasharray=\"2 3\"";

/// Writes the plot as a PNG of 1920 × 1080 pixels, atomically.
///
/// # Errors
/// The file cannot be written.
pub fn save(plot: &Plot<'_>, path: &Path) -> Result<(), Error> {
    let picture = draw(plot).render(SCALE).map_err(|reason| Error::Encode { path: path.into(), reason })?;
    save_rgb(&picture, path)
}

/// The trend of a noisy curve: an exponential average over about `window` steps, run forwards and backwards,
/// so that it does not lag behind.
fn trend(losses: &[f64], window: f64) -> Vec<f64> {
    let weight = 1.0 / window.max(1.0);
    let mut smooth = losses.to_vec();
    for _ in 0..2 {
        // Divided by the sum of its weights, the average does not hang on the first value.
        let (mut sum, mut total) = (0.0, 0.0);
        for value in smooth.iter_mut() {
            sum = (1.0 - weight) * sum + weight * *value;
            total = (1.0 - weight) * total + weight;
            *value = sum / total;
        }
        smooth.reverse();
    }
    smooth
}

fn text<'a>(size: f64, colour: &'a str, anchor: &'a str) -> Style<'a> {
    Style { size, colour, bold: false, anchor }
}

fn draw(plot: &Plot<'_>) -> Svg {
    let mut svg = Svg::new(PAGE.0, PAGE.1);
    svg.text(LEFT, 36.0, Style { bold: true, ..text(19.0, INK, "start") }, plot.title);
    svg.text(LEFT, 58.0, text(13.0, GREY, "start"), plot.subtitle);
    let points: Vec<Point> = plot.points.iter().copied().filter(|p| p.loss.is_finite()).collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        let middle = text(16.0, GREY, "middle");
        svg.text(PAGE.0 / 2.0, PAGE.1 / 2.0, middle, "no step was finished");
        return svg;
    };
    let losses: Vec<f64> = points.iter().map(|p| p.loss).collect();
    let smooth = trend(&losses, (points.len() as f64 / 20.0).clamp(3.0, 100.0));

    let (x0, y0, w, h) = (LEFT, TOP, PAGE.0 - LEFT - RIGHT, PAGE.1 - TOP - BOTTOM);
    let start = if first.step <= 1 { 0.0 } else { first.step as f64 };
    let end = plot.deadline.map_or(0.0, |(step, _)| step).max(last.step as f64).max(start + 1.0);
    let x = |step: f64| x0 + (step - start) / (end - start) * w;
    let (low, high) = axis::range(losses.iter().copied(), 0.01).unwrap_or((0.0, 1.0));
    let (low, high) = smooth.iter().fold((low, high), |(l, h), &s| (l.min(s), h.max(s)));
    let pad = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-9);
    // Near zero the axis starts at zero.
    let low = if low >= 0.0 && low < 0.35 * high { 0.0 } else { low - pad };
    let high = high + pad;
    let y = |loss: f64| y0 + (high - loss) / (high - low) * h;
    let rate_top = points.iter().fold(0.0f64, |m, p| m.max(p.lr)) * 1.08;

    let losses_ticks = axis::ticks(low, high, 6);
    for &tick in &losses_ticks {
        svg.line((x0, y(tick)), (x0 + w, y(tick)), "stroke=\"#e4e8ec\" stroke-width=\"1\"");
        svg.text(x0 - 9.0, y(tick) + 4.5, text(13.0, INK, "end"), &axis::label(tick, &losses_ticks));
    }
    let steps = axis::ticks(start, end, 8);
    for &tick in steps.iter().filter(|t| t.fract() == 0.0) {
        svg.line((x(tick), y0 + h), (x(tick), y0 + h + 5.0), "stroke=\"#66727f\" stroke-width=\"1\"");
        svg.text(x(tick), y0 + h + 21.0, text(13.0, INK, "middle"), &axis::label(tick, &steps));
    }
    svg.text(x0 + w / 2.0, PAGE.1 - 14.0, text(13.0, GREY, "middle"), "step");
    svg.text(x0 - 9.0, y0 - 12.0, text(13.0, LOSS, "end"), "loss");

    let resumes: Vec<f64> =
        plot.resumes.iter().map(|&step| step as f64).filter(|s| (start..=end).contains(s)).collect();
    for &step in &resumes {
        svg.line((x(step), y0), (x(step), y0 + h), RESUMED);
    }
    // Dots beyond the range stick to its edge, so that they are not lost, and the page says so.
    let beyond = losses.iter().filter(|loss| **loss < low || **loss > high).count();
    if beyond > 0 {
        let dots =
            if beyond == 1 { "1 dot at the edge is" } else { &format!("{beyond} dots at the edge are") };
        let note = format!("{dots} beyond the range");
        svg.text(x0 + w, 58.0, text(13.0, GREY, "end"), &note);
    }
    let at = |p: &Point| (x(p.step as f64), y(p.loss.clamp(low, high)));
    let dots: Vec<_> = points.iter().map(at).collect();
    let (diameter, strength) = if dots.len() > 1500 { (2.2, 0.22) } else { (3.2, 0.35) };
    svg.dots(&dots, diameter, &format!("stroke=\"{LOSS}\" stroke-opacity=\"{strength}\""));
    if rate_top > 0.0 {
        let rate_y = |lr: f64| y0 + h - lr / rate_top * h;
        let ticks = axis::ticks(0.0, rate_top, 4);
        for &tick in &ticks {
            svg.text(x0 + w + 9.0, rate_y(tick) + 4.5, text(13.0, RATE, "start"), &axis::label(tick, &ticks));
        }
        let line: Vec<_> = points.iter().map(|p| (x(p.step as f64), rate_y(p.lr))).collect();
        svg.polyline(&line, &format!("stroke=\"{RATE}\" stroke-width=\"1.6\" stroke-dasharray=\"5 4\""));
    }
    let line: Vec<_> = points.iter().zip(&smooth).map(|(p, &s)| (x(p.step as f64), y(s))).collect();
    svg.polyline(&line, &format!("stroke=\"{LOSS}\" stroke-width=\"2.6\" stroke-linejoin=\"round\""));
    svg.line((x0, y0 + h), (x0 + w, y0 + h), "stroke=\"#66727f\" stroke-width=\"1\"");

    if let Some((step, label)) = plot.deadline.filter(|(step, _)| step.is_finite() && *step >= start) {
        let look = format!("stroke=\"{END}\" stroke-width=\"1.6\" stroke-dasharray=\"2 3\"");
        svg.line((x(step), y0 - 4.0), (x(step), y0 + h), &look);
        let anchor = if x(step) > x0 + w * 0.85 { "end" } else { "middle" };
        let shift = if anchor == "end" { width(label, 13.0).min(4.0) } else { 0.0 };
        svg.text(x(step) + shift, y0 - 11.0, text(13.0, END, anchor), label);
    }
    legend(&mut svg, x0 + w, rate_top > 0.0, !resumes.is_empty());
    svg
}

/// What the marks mean, at the right of the title.
fn legend(svg: &mut Svg, right: f64, rate: bool, resumed: bool) {
    let mut x = right;
    let mut entry = |svg: &mut Svg, name: &str, mark: &dyn Fn(&mut Svg, f64)| {
        x -= width(name, 13.0);
        svg.text(x, 36.0, text(13.0, INK, "start"), name);
        x -= 32.0;
        mark(svg, x);
        x -= 20.0;
    };
    let y = 31.5;
    if rate {
        let look = format!("stroke=\"{RATE}\" stroke-width=\"1.6\" stroke-dasharray=\"5 4\"");
        entry(svg, "learning rate", &|svg, x| svg.line((x, y), (x + 24.0, y), &look));
    }
    if resumed {
        entry(svg, "resumed", &|svg, x| svg.line((x + 12.0, y - 8.0), (x + 12.0, y + 8.0), RESUMED));
    }
    let look = format!("stroke=\"{LOSS}\" stroke-width=\"2.6\"");
    entry(svg, "trend", &|svg, x| svg.line((x, y), (x + 24.0, y), &look));
    let look = format!("stroke=\"{LOSS}\" stroke-opacity=\"0.5\"");
    entry(svg, "one step", &|svg, x| {
        svg.dots(&[(x + 6.0, y - 3.0), (x + 13.0, y + 3.0), (x + 20.0, y - 1.0)], 3.6, &look)
    });
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use tenggat_tensor::random::Philox;

    use super::*;

    /// A run as they look: noise around a falling curve, cosine learning rate.
    fn points(n: u64) -> Vec<Point> {
        let random = Philox::new(1);
        let point = |step: u64| {
            let progress = step as f64 / n as f64;
            let noise = 0.08 * (random.uniform(0, step) + random.uniform(1, step) - 1.0);
            Point {
                step,
                loss: 0.22 + 0.12 * (-5.0 * progress).exp() + noise,
                lr: 1e-4 * (0.5 + 0.5 * (std::f64::consts::PI * progress).cos()),
            }
        };
        (1..=n).map(point).collect()
    }

    fn plot(points: &[Point]) -> Plot<'_> {
        let deadline = Some((points.len() as f64 * 1.02, "deadline"));
        Plot {
            title: "pears",
            subtitle: "400 steps of 0.29 s · loss 0.34 → 0.22",
            points,
            resumes: &[],
            deadline,
        }
    }

    fn has(picture: &RgbImage, colour: [u8; 3]) -> bool {
        picture.pixels().any(|p| p.0 == colour)
    }

    #[test]
    fn the_curve_the_rate_and_the_deadline_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let path = match std::env::var_os("TENGGAT_KEEP_REPORTS") {
            Some(kept) => Path::new(&kept).join("loss.png"),
            None => folder.path().join("loss.png"),
        };
        save(&plot(&points(400)), &path).unwrap();
        let picture = image::open(&path).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), (1920, 1080));
        for colour in [[0x1f, 0x6f, 0xb4], [0xd9, 0x77, 0x06], [0xc0, 0x39, 0x2b], [0x1f, 0x29, 0x33]] {
            assert!(has(&picture, colour), "{colour:x?}");
        }
    }

    #[test]
    fn resumes_are_marked() {
        let points = points(400);
        let text = |plot: &Plot<'_>| draw(plot).finish();
        let marked = text(&Plot { resumes: &[150, 9000], ..plot(&points) });
        // One in the plot, one in the legend; the other lies behind the last step.
        assert_eq!(marked.matches(RESUMED).count(), 2, "{marked}");
        assert!(marked.contains("resumed") && !text(&plot(&points)).contains("resumed"));
    }

    #[test]
    fn any_numbers_can_be_plotted() {
        let odd = |loss: f64, lr: f64| [Point { step: 1, loss, lr }];
        for points in [&odd(f64::NAN, 0.0)[..], &odd(0.0, 0.0), &odd(-3.0, 1e30), &odd(1e-300, 1e-300), &[]] {
            let plot = Plot { deadline: Some((f64::NAN, "<&>")), ..plot(points) };
            let text = draw(&plot).finish();
            assert!(!text.contains("NaN") && !text.contains("inf"), "{points:?}\n{text}");
            draw(&plot).render(1.0).unwrap();
        }
        draw(&plot(&points(20_000))).render(SCALE).unwrap();
    }

    #[test]
    fn outliers_at_the_edge_are_counted() {
        let level = |step: u64| 0.2 + 0.01 * (step % 10) as f64;
        let mut points: Vec<Point> =
            (1..=400).map(|step| Point { step, loss: level(step), lr: 1e-4 }).collect();
        assert!(!draw(&plot(&points)).finish().contains("at the edge"));
        points[9].loss = 9.0;
        points[99].loss = 7.0;
        assert!(draw(&plot(&points)).finish().contains("2 dots at the edge are beyond the range"));
    }

    /// A step from 1 to 0 is smoothed about its place, neither before nor after it.
    #[test]
    fn the_trend_does_not_lag() {
        let losses: Vec<f64> = (0..200).map(|i| if i < 100 { 1.0 } else { 0.0 }).collect();
        let smooth = trend(&losses, 10.0);
        assert!((smooth[99] + smooth[100] - 1.0).abs() < 0.1, "{} {}", smooth[99], smooth[100]);
        assert!(smooth[0] > 0.99 && smooth[199] < 0.01);
        assert_eq!(trend(&[2.0], 10.0), [2.0]);
    }
}
