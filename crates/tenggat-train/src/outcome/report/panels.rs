//! Several runs in one picture: panels one below another over one axis of steps.

use std::path::Path;

use super::axis;
use super::chart::COLOURS;
use super::picture::{Error, save_rgb};
use super::svg::{Style, Svg, width};

/// One run in one panel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curve {
    /// Steps and values, in order of the steps; values that are no numbers are left out.
    pub points: Vec<(f64, f64)>,
    /// Steps at which the run was resumed.
    pub resumes: Vec<f64>,
    /// A value that the curve must stay below, such as a deadline.
    pub limit: Option<f64>,
}

/// One quantity of all runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What is measured, with its unit.
    pub name: String,
    /// One for each run.
    pub curves: Vec<Curve>,
    /// Whether the axis starts at 0.
    pub from_zero: bool,
    /// Share of the values at either end that the axis need not reach; a mark at its edge stands for them.
    pub trim: f64,
}

/// What is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Panels<'a> {
    /// Bold, above.
    pub title: &'a str,
    /// Names of the runs.
    pub runs: &'a [String],
    /// From above.
    pub panels: &'a [Panel],
}

const WIDTH: f64 = 960.0;
const SCALE: f64 = 2.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 28.0;
/// Height of the title, of a line of names, of a panel with its caption, and of the axis below the last one.
const HEAD: f64 = 52.0;
const LINE: f64 = 20.0;
const CAPTION: f64 = 34.0;
const PANEL: f64 = 190.0;
const FOOT: f64 = 52.0;

const INK: &str = "#1f2933";
const GREY: &str = "#66727f";

/// Writes the picture as a PNG 1920 pixels wide, atomically.
///
/// # Errors
/// The file cannot be written.
pub fn save(panels: &Panels<'_>, path: &Path) -> Result<(), Error> {
    let picture = draw(panels).render(SCALE).map_err(|reason| Error::Encode { path: path.into(), reason })?;
    save_rgb(&picture, path)
}

fn text<'a>(size: f64, colour: &'a str, anchor: &'a str) -> Style<'a> {
    Style { size, colour, bold: false, anchor }
}

fn colour(run: usize) -> &'static str {
    COLOURS[run % COLOURS.len()]
}

fn finite(curve: &Curve) -> impl Iterator<Item = (f64, f64)> + '_ {
    curve.points.iter().copied().filter(|(step, value)| step.is_finite() && value.is_finite())
}

fn draw(all: &Panels<'_>) -> Svg {
    let names = placed(all.runs);
    let lines = names.last().map_or(0, |(_, line)| line + 1);
    let top = HEAD + lines as f64 * LINE;
    let mut svg = Svg::new(WIDTH, top + all.panels.len() as f64 * (CAPTION + PANEL) + FOOT);
    svg.text(LEFT, 36.0, Style { bold: true, ..text(19.0, INK, "start") }, all.title);
    for (run, ((x, line), name)) in names.iter().zip(all.runs).enumerate() {
        let y = HEAD + *line as f64 * LINE;
        svg.line(
            (*x, y + 3.5),
            (x + 24.0, y + 3.5),
            &format!("stroke=\"{}\" stroke-width=\"2.6\"", colour(run)),
        );
        svg.text(x + 32.0, y + 8.0, text(13.0, INK, "start"), name);
    }
    let steps =
        all.panels.iter().flat_map(|panel| panel.curves.iter().flat_map(finite)).map(|(step, _)| step);
    let Some((first, last)) = axis::range(steps, 0.0) else {
        svg.text(WIDTH / 2.0, top + CAPTION, text(16.0, GREY, "middle"), "no step was finished");
        return svg;
    };
    let first = if first <= 1.0 { 0.0 } else { first };
    let place = Place { first, last: last.max(first + 1.0), top: 0.0 };
    for (n, panel) in all.panels.iter().enumerate() {
        let top = top + CAPTION + n as f64 * (CAPTION + PANEL);
        draw_panel(&mut svg, panel, Place { top, ..place }, n + 1 == all.panels.len());
    }
    svg
}

/// Where the names of runs go: x and line, as many in a line as fit.
fn placed(runs: &[String]) -> Vec<(f64, usize)> {
    let (mut x, mut line) = (LEFT, 0);
    let place = |name: &String| {
        let wide = 32.0 + width(name, 13.0);
        if x > LEFT && x + wide > WIDTH - RIGHT {
            (x, line) = (LEFT, line + 1);
        }
        let at = (x, line);
        x += wide + 24.0;
        at
    };
    runs.iter().map(place).collect()
}

/// The axis of steps, and the upper edge of a panel.
#[derive(Clone, Copy)]
struct Place {
    first: f64,
    last: f64,
    top: f64,
}

impl Place {
    fn x(self, step: f64) -> f64 {
        LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)
    }
}

fn draw_panel(svg: &mut Svg, panel: &Panel, place: Place, is_last: bool) {
    let (top, right) = (place.top, WIDTH - RIGHT);
    svg.text(LEFT, top - 10.0, text(13.0, GREY, "start"), &panel.name);
    svg.line((LEFT, top + PANEL), (right, top + PANEL), "stroke=\"#66727f\" stroke-width=\"1\"");
    let values = || panel.curves.iter().flat_map(finite).map(|(_, value)| value);
    let limits = || panel.curves.iter().filter_map(|curve| curve.limit).filter(|limit| limit.is_finite());
    let Some((low, high)) = axis::range(values(), panel.trim) else {
        svg.text(WIDTH / 2.0, top + PANEL / 2.0, text(13.0, GREY, "middle"), "nothing was measured");
        return;
    };
    let (low, high) = limits().fold((low, high), |(low, high), limit| (low.min(limit), high.max(limit)));
    let pad = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-9);
    let low = if panel.from_zero && low >= 0.0 { 0.0 } else { low - pad };
    let high = high + pad;
    let y = |value: f64| top + (high - value) / (high - low) * PANEL;
    let ticks = axis::ticks(low, high, 4);
    for &tick in &ticks {
        svg.line((LEFT, y(tick)), (right, y(tick)), "stroke=\"#e4e8ec\" stroke-width=\"1\"");
        svg.text(LEFT - 9.0, y(tick) + 4.5, text(13.0, INK, "end"), &axis::label(tick, &ticks));
    }
    let steps = axis::ticks(place.first, place.last, 8);
    for &tick in steps.iter().filter(|tick| tick.fract() == 0.0) {
        let (x, end) = (place.x(tick), top + PANEL);
        svg.line((x, end), (x, end + 5.0), "stroke=\"#66727f\" stroke-width=\"1\"");
        if is_last {
            svg.text(x, end + 21.0, text(13.0, INK, "middle"), &axis::label(tick, &steps));
        }
    }
    if is_last {
        svg.text(WIDTH / 2.0, top + PANEL + 42.0, text(13.0, GREY, "middle"), "step");
    }
    for (run, curve) in panel.curves.iter().enumerate() {
        let thin = format!("stroke=\"{}\" stroke-width=\"1.4\" stroke-dasharray=\"2 3\"", colour(run));
        for &step in curve.resumes.iter().filter(|step| (place.first..=place.last).contains(*step)) {
            svg.line((place.x(step), top), (place.x(step), top + PANEL), &thin);
        }
        if let Some(limit) = curve.limit.filter(|limit| limit.is_finite()) {
            svg.line((LEFT, y(limit)), (right, y(limit)), &thin.replace("2 3", "7 4"));
        }
        let line: Vec<_> =
            finite(curve).map(|(step, value)| (place.x(step), y(value.clamp(low, high)))).collect();
        let look = format!("stroke=\"{}\" stroke-width=\"1.8\" stroke-linejoin=\"round\"", colour(run));
        svg.polyline(&line, &look);
        for (step, value) in finite(curve).filter(|(_, value)| *value < low || *value > high) {
            svg.beyond(
                place.x(step),
                if value > high { top } else { top + PANEL },
                value > high,
                colour(run),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(values: &[f64]) -> Curve {
        let points = values.iter().enumerate().map(|(i, value)| (i as f64 + 1.0, *value)).collect();
        Curve { points, ..Curve::default() }
    }

    fn panel(curves: Vec<Curve>) -> Panel {
        Panel { name: "loss".into(), curves, from_zero: false, trim: 0.01 }
    }

    #[test]
    fn every_run_has_its_colour_in_every_panel() {
        let runs = ["fox".to_owned(), "bell".to_owned()];
        let resumed = Curve { resumes: vec![2.0], limit: Some(3.0), ..curve(&[1.0, 0.8, 0.7]) };
        let panels =
            [panel(vec![resumed, curve(&[1.2, 1.0])]), panel(vec![curve(&[0.5; 3]), curve(&[0.4; 2])])];
        let all = Panels { title: "2 runs", runs: &runs, panels: &panels };
        let text = draw(&all).finish();
        // Name, line in either panel, resume and limit; name and two lines.
        assert_eq!(text.matches(COLOURS[0]).count(), 5, "{text}");
        assert_eq!(text.matches(COLOURS[1]).count(), 3, "{text}");
        let folder = tempfile::tempdir().unwrap();
        save(&all, &folder.path().join("plot.png")).unwrap();
        let picture = image::open(folder.path().join("plot.png")).unwrap().into_rgb8();
        let height = HEAD + LINE + 2.0 * (CAPTION + PANEL) + FOOT;
        assert_eq!(picture.dimensions(), (1920, (height * SCALE) as u32));
        assert!(picture.pixels().any(|pixel| pixel.0 == [0xd5, 0x5e, 0x00]));
    }

    #[test]
    fn what_lies_beyond_the_axis_is_marked_at_its_edge() {
        let mut values = vec![1.0; 400];
        values[200] = 900.0;
        let runs = ["fox".to_owned()];
        let text = |values: &[f64]| {
            let panels = [panel(vec![curve(values)])];
            draw(&Panels { title: "", runs: &runs, panels: &panels }).finish()
        };
        assert_eq!(text(&values).matches("<polygon").count(), 1);
        assert_eq!(text(&[1.0; 400]).matches("<polygon").count(), 0);
    }

    #[test]
    fn any_numbers_can_be_drawn() {
        let odd =
            Curve { resumes: vec![f64::NAN, -1.0], limit: Some(f64::NAN), ..curve(&[f64::NAN, 1e300, 0.0]) };
        for curves in [vec![], vec![Curve::default()], vec![odd]] {
            let panels = [panel(curves)];
            let drawn = draw(&Panels { title: "<&>", runs: &["a".into()], panels: &panels });
            let text = drawn.finish();
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
            drawn.render(1.0).unwrap();
        }
    }

    #[test]
    fn many_names_take_several_lines() {
        let runs: Vec<String> = (0..12).map(|n| format!("a run with a long name {n}")).collect();
        let placed = placed(&runs);
        assert!(placed.last().unwrap().1 > 1);
        assert!(placed.iter().zip(&runs).all(|((x, _), name)| x + 32.0 + width(name, 13.0) <= WIDTH - RIGHT));
    }
}
