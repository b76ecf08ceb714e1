//! A grid of images of several models.

use std::io::{self, Write};

use mixbit_diffusion::session::Image;

use super::raster::{Bitmap, Letters};

/// Pixels between images and around them.
const GAP: usize = 8;
const INK: [u8; 3] = [0x1f, 0x23, 0x28];

/// A grid of images: a row for each prompt, a column for each model.
#[derive(Clone, Debug)]
pub struct Grid<'a> {
    /// The names of the columns, in one or more lines.
    pub columns: Vec<&'a str>,
    /// The name of each row, and its images.
    pub rows: Vec<(&'a str, Vec<Cell<'a>>)>,
}

/// An image of a grid.
#[derive(Clone, Debug)]
pub struct Cell<'a> {
    /// The image.
    pub image: &'a Image,
    /// A line below it.
    pub caption: String,
}

impl Grid<'_> {
    /// Width and height in pixels.
    pub fn size(&self) -> [usize; 2] {
        let [width, height] = self.cell();
        let rows = self.rows.len() * (self.strip() + height + self.caption() + GAP);
        [GAP + self.columns.len().max(1) * (width + GAP), GAP + self.header() + rows]
    }

    /// Writes a PNG file with `parameters` as its text, under the keyword that generation parameters have.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_png(&self, out: impl Write, parameters: &str) -> io::Result<()> {
        let [width, height] = self.size();
        let [cell_width, cell_height] = self.cell();
        let letters = self.letters();
        let mut bitmap = Bitmap::new(width, height);
        let left = |column: usize| GAP + column * (cell_width + GAP);
        for (column, name) in self.columns.iter().enumerate() {
            for (line, text) in wrapped(name, cell_width / letters.width()).iter().enumerate() {
                let top = GAP / 2 + line * letters.height();
                bitmap.text([left(column) as isize, top as isize], text, letters, INK);
            }
        }
        let mut top = GAP + self.header();
        for (name, images) in &self.rows {
            let label = shortened(name, (width - 2 * GAP) / letters.width());
            bitmap.text([GAP as isize, top as isize], &label, letters, INK);
            top += self.strip();
            for (column, Cell { image, caption }) in images.iter().enumerate() {
                bitmap.put([left(column), top], &image.to_rgb8(), image.width);
                let caption = shortened(caption, cell_width / letters.width());
                let place = [left(column) as isize, (top + cell_height) as isize];
                bitmap.text(place, &caption, letters, INK);
            }
            top += cell_height + self.caption() + GAP;
        }
        bitmap.write_png(out, &[("parameters", parameters)])
    }

    /// Width and height of the largest image.
    fn cell(&self) -> [usize; 2] {
        let images = || self.rows.iter().flat_map(|(_, cells)| cells).map(|cell| cell.image);
        let most = |extent: &dyn Fn(&Image) -> usize| images().map(extent).max().unwrap_or(0);
        [most(&|image| image.width), most(&|image| image.height)]
    }

    fn letters(&self) -> Letters {
        if self.cell()[0] >= 384 { Letters::Large } else { Letters::Small }
    }

    /// The height of the columns' names.
    fn header(&self) -> usize {
        let letters = self.letters();
        let width = self.cell()[0] / letters.width();
        let lines = self.columns.iter().map(|name| wrapped(name, width).len()).max().unwrap_or(0);
        lines * letters.height()
    }

    /// The height of the captions of a row; 0 if there are none.
    fn caption(&self) -> usize {
        let mut cells = self.rows.iter().flat_map(|(_, cells)| cells);
        if cells.any(|cell| !cell.caption.is_empty()) { self.letters().height() } else { 0 }
    }

    /// The height of a row's name.
    fn strip(&self) -> usize {
        self.letters().height() + GAP / 2
    }
}

/// Lines of at most `width` characters; a longer one goes on in the next.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let lines = text.split('\n').map(|line| line.chars().collect::<Vec<char>>());
    let cut = |line: Vec<char>| -> Vec<String> {
        line.chunks(width.max(1)).map(|piece| piece.iter().collect()).collect()
    };
    lines.flat_map(cut).collect()
}

/// The first `width` characters of a text, with an ellipsis if it is longer.
fn shortened(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => format!("{}...", text.chars().take(width.saturating_sub(3)).collect::<String>()),
        false => text.to_string(),
    }
}
