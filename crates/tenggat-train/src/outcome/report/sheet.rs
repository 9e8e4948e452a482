//! A sheet of pictures: a row for each prompt, a column for each state of the model.

use std::path::Path;

use image::{RgbImage, imageops};

use super::picture::{Error, save_rgb};
use super::svg::{Style, Svg, wrap};

/// What is shown.
#[derive(Debug)]
pub struct Sheet<'a> {
    /// Bold, above.
    pub title: &'a str,
    /// Below the title.
    pub subtitle: &'a str,
    /// Headings of the columns.
    pub columns: &'a [&'a str],
    /// The rows; those that lack pictures leave cells empty.
    pub rows: &'a [Row],
}

/// One row.
#[derive(Debug, Clone)]
pub struct Row {
    /// Prompt or caption, at the left.
    pub label: String,
    /// Small print below the label, such as an error before and after.
    pub note: String,
    /// A picture for each column.
    pub pictures: Vec<RgbImage>,
}

const MARGIN: f64 = 28.0;
const GAP: f64 = 10.0;
const HEADER: f64 = 84.0;
const HEADINGS: f64 = 32.0;
const LABEL: f64 = 172.0;
/// Space between two blocks of rows.
const BLOCKS: f64 = 34.0;
/// Longest side of a picture on the sheet: smaller ones are enlarged to it, larger ones reduced.
const SIDE: f64 = 224.0;
/// Width over height that the sheet comes near to.
const SHAPE: f64 = 1.5;

const INK: &str = "#1f2933";
const GREY: &str = "#66727f";
const FRAME: image::Rgb<u8> = image::Rgb([0xd5, 0xdb, 0xe1]);

/// Writes the sheet as a picture, atomically; the format is that of the extension.
///
/// # Errors
/// The file cannot be written.
pub fn save(sheet: &Sheet<'_>, path: &Path) -> Result<(), Error> {
    let picture = draw(sheet).map_err(|reason| Error::Encode { path: path.into(), reason })?;
    save_rgb(&picture, path)
}

/// Where everything goes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Layout {
    /// Blocks of rows beside each other.
    blocks: usize,
    /// Rows in a block.
    per_block: usize,
    cell: (f64, f64),
    columns: usize,
}

impl Layout {
    fn new(sheet: &Sheet<'_>) -> Layout {
        let sizes = || sheet.rows.iter().flat_map(|r| &r.pictures).map(|p| fitted(p.dimensions()));
        let cell = sizes().fold((1.0f64, 1.0f64), |(w, h), (pw, ph)| (w.max(pw), h.max(ph)));
        let columns = sheet.columns.len().max(1);
        let with = |blocks: usize| Layout {
            blocks,
            per_block: sheet.rows.len().div_ceil(blocks).max(1),
            cell,
            columns,
        };
        let badness = |layout: &Layout| {
            let (w, h) = layout.page();
            (w / h / SHAPE).ln().abs()
        };
        (1..=sheet.rows.len().max(1))
            .map(with)
            .min_by(|a, b| badness(a).total_cmp(&badness(b)))
            .unwrap_or_else(|| with(1))
    }

    fn block_width(&self) -> f64 {
        LABEL + self.columns as f64 * (self.cell.0 + GAP)
    }

    fn page(&self) -> (f64, f64) {
        let width = self.blocks as f64 * (self.block_width() + BLOCKS) - BLOCKS;
        let height = HEADER + HEADINGS + self.per_block as f64 * (self.cell.1 + GAP);
        (width + 2.0 * MARGIN, height + MARGIN)
    }

    /// Left top corner of a row's label.
    fn row(&self, index: usize) -> (f64, f64) {
        let (block, row) = (index / self.per_block, index % self.per_block);
        let x = MARGIN + block as f64 * (self.block_width() + BLOCKS);
        (x, HEADER + HEADINGS + row as f64 * (self.cell.1 + GAP))
    }

    /// Left top corner of a cell.
    fn cell(&self, index: usize, column: usize) -> (f64, f64) {
        let (x, y) = self.row(index);
        (x + LABEL + column as f64 * (self.cell.0 + GAP), y)
    }
}

/// Size on the sheet of a picture of this size.
fn fitted((width, height): (u32, u32)) -> (f64, f64) {
    let scale = SIDE / f64::from(width.max(height).max(1));
    ((f64::from(width) * scale).round().max(1.0), (f64::from(height) * scale).round().max(1.0))
}

fn draw(sheet: &Sheet<'_>) -> Result<RgbImage, String> {
    let layout = Layout::new(sheet);
    let (page_w, page_h) = layout.page();
    let text_w = page_w - 2.0 * MARGIN;
    let mut svg = Svg::new(page_w, page_h);
    let title = Style { size: 24.0, colour: INK, bold: true, anchor: "start" };
    let small = Style { size: 15.0, colour: GREY, bold: false, anchor: "start" };
    // Bold letters are wider than the plain ones that are measured.
    for line in wrap(sheet.title, title.size * 1.15, text_w, 1) {
        svg.text(MARGIN, 44.0, title, &line);
    }
    for line in wrap(sheet.subtitle, small.size, text_w, 1) {
        svg.text(MARGIN, 70.0, small, &line);
    }
    let heading = Style { size: 16.0, colour: INK, bold: true, anchor: "middle" };
    for block in 0..sheet.rows.len().div_ceil(layout.per_block) {
        for (column, name) in sheet.columns.iter().enumerate() {
            let (x, y) = layout.cell(block * layout.per_block, column);
            svg.text(x + layout.cell.0 / 2.0, y - 10.0, heading, name);
        }
    }
    let label = Style { size: 15.0, colour: INK, bold: false, anchor: "start" };
    for (index, row) in sheet.rows.iter().enumerate() {
        let (x, y) = layout.row(index);
        let lines_that_fit = ((layout.cell.1 - 36.0) / 20.0).max(1.0) as usize;
        let mut baseline = y + 15.0;
        for line in wrap(&row.label, label.size, LABEL - 14.0, lines_that_fit) {
            svg.text(x, baseline, label, &line);
            baseline += 20.0;
        }
        for line in wrap(&row.note, 13.0, LABEL - 14.0, 2) {
            svg.text(x, baseline + 3.0, Style { size: 13.0, ..small }, &line);
            baseline += 17.0;
        }
    }
    let mut page = svg.render(1.0)?;
    for (index, row) in sheet.rows.iter().enumerate() {
        for (column, picture) in row.pictures.iter().take(sheet.columns.len()).enumerate() {
            let (w, h) = fitted(picture.dimensions());
            let shown = imageops::resize(picture, w as u32, h as u32, imageops::FilterType::CatmullRom);
            let (x, y) = layout.cell(index, column);
            let at = ((x + (layout.cell.0 - w) / 2.0) as i64, (y + (layout.cell.1 - h) / 2.0) as i64);
            // A frame, for pictures as white as the page.
            let frame = RgbImage::from_pixel(shown.width() + 2, shown.height() + 2, FRAME);
            imageops::replace(&mut page, &frame, at.0 - 1, at.1 - 1);
            imageops::replace(&mut page, &shown, at.0, at.1);
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(width: u32, height: u32, colour: [u8; 3]) -> RgbImage {
        RgbImage::from_pixel(width, height, image::Rgb(colour))
    }

    const COLOURS: [[u8; 3]; 3] = [[200, 10, 10], [10, 200, 10], [10, 10, 200]];

    fn rows(n: usize) -> Vec<Row> {
        let row = |i: usize| Row {
            label: format!("a flat sticker of a thing with the number {i}, thick white outline"),
            note: "error 0.0123 → 0.0101".into(),
            pictures: COLOURS.map(|c| flat(128, 128, c)).to_vec(),
        };
        (0..n).map(row).collect()
    }

    fn sheet(rows: &[Row]) -> Sheet<'_> {
        Sheet {
            title: "pears",
            subtitle: "held-out pictures",
            columns: &["original", "before", "after"],
            rows,
        }
    }

    #[test]
    fn every_picture_is_in_its_cell() {
        let rows = rows(8);
        let sheet = sheet(&rows);
        let layout = Layout::new(&sheet);
        let page = draw(&sheet).unwrap();
        for index in 0..8 {
            for (column, colour) in COLOURS.iter().enumerate() {
                let (x, y) = layout.cell(index, column);
                for (dx, dy) in [(1.0, 1.0), (layout.cell.0 - 2.0, layout.cell.1 - 2.0)] {
                    assert_eq!(
                        page.get_pixel((x + dx) as u32, (y + dy) as u32).0,
                        *colour,
                        "{index} {column}"
                    );
                }
            }
        }
        assert!(page.get_pixel(2, 2).0 == [255; 3]);
    }

    #[test]
    fn sheets_are_neither_towers_nor_ribbons() {
        for n in [1, 2, 3, 8, 20, 50] {
            let rows = rows(n);
            let (w, h) = Layout::new(&sheet(&rows)).page();
            assert!((0.55..3.5).contains(&(w / h)), "{n} rows: {w} × {h}");
        }
    }

    #[test]
    fn shapes_may_differ_and_pictures_be_missing() {
        let mut rows = rows(3);
        rows[0].pictures = vec![flat(64, 256, [0; 3])];
        rows[1].pictures =
            vec![flat(1024, 512, [0; 3]), flat(1, 1, [9; 3]), flat(3, 2, [0; 3]), flat(8, 8, [0; 3])];
        rows[2].pictures.clear();
        assert_eq!(Layout::new(&sheet(&rows)).cell, (SIDE, SIDE));
        draw(&sheet(&rows)).unwrap();
        draw(&Sheet { rows: &[], columns: &[], ..sheet(&rows) }).unwrap();
    }

    #[test]
    fn the_file_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sheet.png");
        let rows = rows(2);
        save(&sheet(&rows), &path).unwrap();
        let page = Layout::new(&sheet(&rows)).page();
        let size = image::image_dimensions(&path).unwrap();
        assert_eq!((f64::from(size.0), f64::from(size.1)), (page.0.round(), page.1.round()));
    }

    /// A sheet of the demo pictures, to be looked at: `TENGGAT_KEEP_REPORTS=folder cargo test sheet`.
    #[test]
    fn demo_pictures_make_a_sheet() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset/test");
        let mut rows = Vec::new();
        for name in ["bus", "cherry-blossom", "guitar", "lemon", "owl", "pear", "trophy", "turtle"] {
            let picture = image::open(folder.join(name).with_extension("png")).unwrap().into_rgb8();
            let label = std::fs::read_to_string(folder.join(name).with_extension("txt")).unwrap();
            let blurred = imageops::blur(&picture, 3.0);
            let pictures = vec![picture.clone(), blurred, picture];
            rows.push(Row { label, note: "error 0.0314 → 0.0271".into(), pictures });
        }
        let kept = std::env::var_os("TENGGAT_KEEP_REPORTS");
        let temporary = tempfile::tempdir().unwrap();
        let path = kept.as_ref().map_or(temporary.path(), Path::new).join("sheet.png");
        let subtitle = "8 held-out pictures, redrawn from 75 % noise · error 0.0314 → 0.0271 (−14 %)";
        save(&Sheet { title: "stickers: before and after", subtitle, ..sheet(&rows) }, &path).unwrap();
        assert!(path.metadata().unwrap().len() > 10_000);
    }
}
