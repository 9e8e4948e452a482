//! From SVG text to pixels, with the fonts that are compiled in.

use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use image::RgbImage;
use resvg::usvg::{self, fontdb};
use resvg::{tiny_skia, usvg::Tree};

const REGULAR: &[u8] = include_bytes!("../../../../../assets/fonts/DejaVuSans-subset.ttf");
const BOLD: &[u8] = include_bytes!("../../../../../assets/fonts/DejaVuSans-Bold-subset.ttf");

/// Family of the fonts.
const FAMILY: &str = "DejaVu Sans";

static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(REGULAR.to_vec());
    fonts.load_font_data(BOLD.to_vec());
    fonts.set_sans_serif_family(FAMILY);
    Arc::new(fonts)
});

/// Widths of the characters from space to `~`, in 1/2048 of the type size (table `hmtx` of the font).
const ADVANCES: [u16; 95] = [
    651, 821, 942, 1716, 1303, 1946, 1597, 563, 799, 799, 1024, 1716, 651, 739, 651, 690, 1303, 1303, 1303,
    1303, 1303, 1303, 1303, 1303, 1303, 1303, 690, 690, 1716, 1716, 1716, 1087, 2048, 1401, 1405, 1430, 1577,
    1294, 1178, 1587, 1540, 604, 604, 1343, 1141, 1767, 1532, 1612, 1235, 1612, 1423, 1300, 1251, 1499, 1401,
    2025, 1403, 1251, 1403, 799, 690, 799, 1716, 1024, 1024, 1255, 1300, 1126, 1300, 1260, 721, 1300, 1298,
    569, 569, 1186, 569, 1995, 1298, 1253, 1300, 1300, 842, 1067, 803, 1298, 1212, 1675, 1212, 1212, 1075,
    1303, 690, 1303, 1716,
];

/// Width of other characters: that of an `n`.
const OTHER: u16 = 1298;

/// Width of a text of this size, in the same unit.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let advance = |c: char| {
        let place = (c as usize).checked_sub(' ' as usize);
        f64::from(place.and_then(|i| ADVANCES.get(i)).copied().unwrap_or(OTHER))
    };
    text.chars().map(advance).sum::<f64>() / 2048.0 * size
}

/// Breaks a text into at most `most` lines of this width; what does not fit ends with "…".
pub(super) fn wrap(text: &str, size: f64, max_width: f64, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let joined = match lines.last() {
            Some(line) => format!("{line} {word}"),
            None => word.to_owned(),
        };
        match lines.last_mut() {
            Some(line) if width(&joined, size) <= max_width => *line = joined,
            _ => lines.push(word.to_owned()),
        }
    }
    let cut = lines.len() > most;
    lines.truncate(most);
    let last = lines.len().saturating_sub(1);
    for (i, line) in lines.iter_mut().enumerate() {
        let more = cut && i == last;
        if width(line, size) > max_width || more {
            while width(&format!("{line}…"), size) > max_width && line.pop().is_some() {}
            line.push('…');
        }
    }
    lines
}

/// How a text is set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style<'a> {
    pub size: f64,
    pub colour: &'a str,
    pub bold: bool,
    /// `start`, `middle` or `end`: which end of the text is at its x.
    pub anchor: &'a str,
}

/// An SVG being written.
#[derive(Debug)]
pub(super) struct Svg {
    text: String,
    width: f64,
    height: f64,
}

impl Svg {
    /// A white page.
    pub fn new(width: f64, height: f64) -> Svg {
        let text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"{FAMILY}\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        Svg { text, width, height }
    }

    /// A text; `y` is its base line.
    pub fn text(&mut self, x: f64, y: f64, style: Style<'_>, text: &str) {
        let weight = if style.bold { "bold" } else { "normal" };
        self.element(&format!(
            "<text x=\"{x:.2}\" y=\"{y:.2}\" font-size=\"{}\" font-weight=\"{weight}\" fill=\"{}\" \
             text-anchor=\"{}\">{}</text>",
            style.size,
            style.colour,
            style.anchor,
            escaped(text)
        ));
    }

    /// A straight line; `look` holds the attributes of the stroke.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), look: &str) {
        self.element(&format!(
            "<line x1=\"{:.2}\" y1=\"{:.2}\" x2=\"{:.2}\" y2=\"{:.2}\" {look}/>",
            from.0, from.1, to.0, to.1
        ));
    }

    /// A path through points.
    pub fn polyline(&mut self, points: &[(f64, f64)], look: &str) {
        let mut path = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let _ = write!(path, "{}{x:.2} {y:.2}", if i == 0 { "M" } else { "L" }); // a String takes everything
        }
        self.element(&format!("<path d=\"{path}\" fill=\"none\" {look}/>"));
    }

    /// Dots, as one path, so that many thousands are drawn fast.
    pub fn dots(&mut self, points: &[(f64, f64)], diameter: f64, look: &str) {
        let mut path = String::new();
        for (x, y) in points {
            let _ = write!(path, "M{x:.2} {y:.2}h0.01"); // a String takes everything
        }
        self.element(&format!(
            "<path d=\"{path}\" fill=\"none\" stroke-linecap=\"round\" stroke-width=\"{diameter}\" {look}/>"
        ));
    }

    /// A mark at the edge of an axis for a value beyond it.
    pub fn beyond(&mut self, x: f64, y: f64, is_above: bool, colour: &str) {
        let away = if is_above { -7.0 } else { 7.0 };
        let (left, right, tip) = (x - 4.0, x + 4.0, y + away);
        self.element(&format!(
            "<polygon points=\"{left:.2},{y:.2} {right:.2},{y:.2} {x:.2},{tip:.2}\" fill=\"{colour}\"/>"
        ));
    }

    fn element(&mut self, element: &str) {
        self.text.push_str(element);
        self.text.push('\n');
    }

    /// The whole text.
    pub fn finish(&self) -> String {
        format!("{}</svg>\n", self.text)
    }

    /// Pixels, `scale` to a unit.
    pub fn render(&self, scale: f64) -> Result<RgbImage, String> {
        let options =
            usvg::Options { fontdb: FONTS.clone(), font_family: FAMILY.into(), ..usvg::Options::default() };
        let tree = Tree::from_str(&self.finish(), &options).map_err(|e| e.to_string())?;
        let (w, h) = ((self.width * scale).round() as u32, (self.height * scale).round() as u32);
        let mut pixels =
            tiny_skia::Pixmap::new(w, h).ok_or_else(|| format!("{w} × {h} pixels cannot be drawn"))?;
        let transform = tiny_skia::Transform::from_scale(scale as f32, scale as f32);
        resvg::render(&tree, transform, &mut pixels.as_mut());
        // The page is opaque, so that premultiplied colours are the colours.
        let rgb = pixels.data().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
        RgbImage::from_raw(w, h, rgb).ok_or_else(|| "the drawing lost pixels".into())
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML cannot hold control characters.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style<'static> = Style { size: 20.0, colour: "#000000", bold: false, anchor: "start" };

    /// Columns that hold anything dark.
    fn inked(picture: &RgbImage) -> Vec<u32> {
        (0..picture.width())
            .filter(|&x| (0..picture.height()).any(|y| picture.get_pixel(x, y)[0] < 128))
            .collect()
    }

    #[test]
    fn text_is_drawn_as_wide_as_it_is_measured() {
        let text = "Loss after 250 steps: it's <0.3> & \"falling\"";
        let mut svg = Svg::new(600.0, 40.0);
        svg.text(10.0, 28.0, PLAIN, text);
        let ink = inked(&svg.render(1.0).unwrap());
        let (first, last) = (f64::from(ink[0]), f64::from(ink[ink.len() - 1]));
        let expected = width(text, 20.0);
        assert!((last - first - expected).abs() < 0.05 * expected, "{first}..{last}, measured {expected}");
    }

    #[test]
    fn other_letters_have_glyphs_too() {
        let mut svg = Svg::new(300.0, 40.0);
        svg.text(0.0, 28.0, PLAIN, "größer … – × ° σ ≤");
        assert!(inked(&svg.render(1.0).unwrap()).len() > 80);
        let mut bold = Svg::new(300.0, 40.0);
        bold.text(0.0, 28.0, Style { bold: true, ..PLAIN }, "größer … – × ° σ ≤");
        assert_ne!(bold.render(1.0).unwrap(), svg.render(1.0).unwrap());
    }

    #[test]
    fn words_that_do_not_fit_are_cut() {
        assert_eq!(wrap("a red fox in the snow", 10.0, 50.0, 5), ["a red fox", "in the", "snow"]);
        let two = wrap("a red fox in the snow", 10.0, 50.0, 2);
        assert_eq!((two.len(), two[1].as_str()), (2, "in the…"));
        let long = wrap("donaudampfschifffahrt", 10.0, 60.0, 2);
        assert!(long.len() == 1 && long[0].ends_with('…') && width(&long[0], 10.0) <= 60.0, "{long:?}");
        assert!(wrap("  ", 10.0, 60.0, 2).is_empty());
    }

    #[test]
    fn scale_and_control_characters_are_handled() {
        let mut svg = Svg::new(20.0, 10.0);
        svg.text(0.0, 8.0, PLAIN, "a\u{0}\u{1b}b");
        svg.dots(&[(5.0, 5.0)], 4.0, "stroke=\"#000000\"");
        assert_eq!(svg.render(3.0).unwrap().dimensions(), (60, 30));
    }
}
