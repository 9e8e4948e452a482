//! Several curves over an axis of doublings: scores over budgets.

use std::path::Path;

use super::axis;
use super::picture::{Error, save_rgb};
use super::svg::{Style, Svg};

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Written at its end.
    pub name: String,
    /// Places above 0 and values, in order of the places.
    pub points: Vec<(f64, f64)>,
}

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart<'a> {
    /// Bold, above.
    pub title: &'a str,
    /// What the two axes measure.
    pub axes: [&'a str; 2],
    /// Places that are labelled, and their labels.
    pub marks: Vec<(f64, String)>,
    /// The curves.
    pub series: &'a [Series],
}

const PAGE: (f64, f64) = (960.0, 540.0);
const SCALE: f64 = 2.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 78.0;
const BOTTOM: f64 = 58.0;
/// Least distance of two names.
const LINE: f64 = 17.0;

const INK: &str = "#1f2933";
const GREY: &str = "#66727f";
/// Told apart also by people who see few colours (Okabe and Ito, 2008).
pub(super) const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c00"];

/// Writes the chart as a PNG of 1920 × 1080 pixels, atomically.
///
/// # Errors
/// The file cannot be written.
pub fn save(chart: &Chart<'_>, path: &Path) -> Result<(), Error> {
    let picture = draw(chart).render(SCALE).map_err(|reason| Error::Encode { path: path.into(), reason })?;
    save_rgb(&picture, path)
}

fn text<'a>(size: f64, colour: &'a str, anchor: &'a str) -> Style<'a> {
    Style { size, colour, bold: false, anchor }
}

fn draw(chart: &Chart<'_>) -> Svg {
    let mut svg = Svg::new(PAGE.0, PAGE.1);
    svg.text(LEFT, 36.0, Style { bold: true, ..text(19.0, INK, "start") }, chart.title);
    let all = || chart.series.iter().flat_map(|s| &s.points).filter(|(x, y)| *x > 0.0 && y.is_finite());
    let places = axis::range(all().map(|(x, _)| x.log2()), 0.0);
    let values = axis::range(all().map(|(_, y)| *y), 0.0);
    let (Some((first, last)), Some((low, high))) = (places, values) else {
        svg.text(PAGE.0 / 2.0, PAGE.1 / 2.0, text(16.0, GREY, "middle"), "nothing was measured");
        return svg;
    };
    let (x0, y0, w, h) = (LEFT, TOP, PAGE.0 - LEFT - RIGHT, PAGE.1 - TOP - BOTTOM);
    let pad = ((high - low) * 0.06).max(1e-9);
    let (low, high) = (low - pad, high + pad);
    let x = |place: f64| x0 + (place.log2() - first) / (last - first).max(1e-9) * w;
    let y = |value: f64| y0 + (high - value) / (high - low) * h;

    let ticks = axis::ticks(low, high, 6);
    for &tick in &ticks {
        svg.line((x0, y(tick)), (x0 + w, y(tick)), "stroke=\"#e4e8ec\" stroke-width=\"1\"");
        svg.text(x0 - 9.0, y(tick) + 4.5, text(13.0, INK, "end"), &axis::label(tick, &ticks));
    }
    for (place, name) in &chart.marks {
        svg.line((x(*place), y0 + h), (x(*place), y0 + h + 5.0), "stroke=\"#66727f\" stroke-width=\"1\"");
        svg.text(x(*place), y0 + h + 21.0, text(13.0, INK, "middle"), name);
    }
    svg.text(x0 + w / 2.0, PAGE.1 - 14.0, text(13.0, GREY, "middle"), chart.axes[0]);
    svg.text(x0, y0 - 16.0, text(13.0, GREY, "start"), chart.axes[1]);
    svg.line((x0, y0 + h), (x0 + w, y0 + h), "stroke=\"#66727f\" stroke-width=\"1\"");

    let mut names = Vec::new();
    for (series, colour) in chart.series.iter().zip(COLOURS.iter().cycle()) {
        let usable = series.points.iter().filter(|(x, y)| *x > 0.0 && y.is_finite());
        let line: Vec<_> = usable.map(|&(place, value)| (x(place), y(value))).collect();
        svg.polyline(&line, &format!("stroke=\"{colour}\" stroke-width=\"2.2\" stroke-linejoin=\"round\""));
        svg.dots(&line, 6.0, &format!("stroke=\"{colour}\""));
        if let Some(&end) = line.last() {
            names.push((end.1, *colour, series.name.as_str()));
        }
    }
    // From the top, each name below the one before it.
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = y0;
    for (at, colour, name) in names {
        let at = at.max(free);
        svg.text(x0 + w + 12.0, at + 4.5, text(13.0, colour, "start"), name);
        free = at + LINE;
    }
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_and_names_are_drawn() {
        let series = [
            Series { name: "annealed".into(), points: vec![(15.0, -1.0), (30.0, -2.0), (60.0, -2.5)] },
            Series { name: "constant".into(), points: vec![(15.0, -0.5), (60.0, f64::NAN)] },
        ];
        let marks = [15.0, 30.0, 60.0].map(|s| (s, format!("{s} s"))).to_vec();
        let chart = Chart { title: "score", axes: ["budget", "change"], marks, series: &series };
        let text = draw(&chart).finish();
        assert!(!text.contains("NaN") && text.contains("annealed") && text.contains("60 s"), "{text}");
        let folder = tempfile::tempdir().unwrap();
        save(&chart, &folder.path().join("chart.png")).unwrap();
        let picture = image::open(folder.path().join("chart.png")).unwrap().into_rgb8();
        assert!(picture.pixels().any(|p| p.0 == [0x00, 0x72, 0xb2]));
        let empty = Chart { series: &[], ..chart };
        assert!(draw(&empty).finish().contains("nothing was measured"));
    }
}
