//! Progress bars, drawn through the one way to the terminal.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use super::escape;
use super::sink::{self, Stream, Worth};

/// Drawings a second.
const RATE: u8 = 20;

/// The bars on the screen and their numbers; lines are printed above them.
static SHOWN: Mutex<Vec<(u64, ProgressBar)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

fn shown() -> MutexGuard<'static, Vec<(u64, ProgressBar)>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A progress bar on standard error, gone when it is dropped; nothing where that is no terminal.
#[derive(Debug)]
pub struct Bar {
    number: u64,
    bar: ProgressBar,
}

impl Bar {
    /// A bar of this many parts in a template of indicatif's.
    pub fn new(length: u64, template: &'static str) -> Self {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self::with(Some(length), style)
    }

    /// A wheel that turns while a message says what is under way.
    pub fn spinner() -> Self {
        let spinner = Self::with(None, ProgressStyle::default_spinner());
        spinner.bar.enable_steady_tick(Duration::from_millis(200));
        spinner
    }

    /// Lines of text that are drawn over again.
    pub fn lines() -> Self {
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        Self::with(None, style)
    }

    fn with(length: Option<u64>, style: ProgressStyle) -> Self {
        let target = if super::terminal::shows_bars() {
            ProgressDrawTarget::term_like_with_hz(Box::new(Screen::default()), RATE)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(length, target).with_style(style);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        shown().push((number, bar.clone()));
        Bar { number, bar }
    }

    /// Shows a position.
    pub fn set_position(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Adds to the position.
    pub fn inc(&self, by: u64) {
        self.bar.inc(by);
    }

    /// Changes the number of parts.
    pub fn set_length(&self, length: u64) {
        self.bar.set_length(length);
    }

    /// Shows a text.
    pub fn set_message(&self, text: &str) {
        self.bar.set_message(escape::line(text).into_owned());
    }

    /// Shows several lines.
    pub fn set_lines(&self, text: &str) {
        self.bar.set_message(escape::block(text).into_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        shown().retain(|(number, _)| *number != self.number);
        // An error has ended what it showed.
        if !self.bar.is_finished() {
            self.bar.finish_and_clear();
        }
    }
}

/// Prints between the drawings of the bar that is shown.
pub fn aside(print: impl FnOnce()) {
    let last = shown().last().cloned();
    match last {
        Some((_, bar)) => bar.suspend(print),
        None => print(),
    }
}

/// The terminal as indicatif draws on it: a drawing is collected, then written as a whole.
#[derive(Debug, Default)]
struct Screen(Mutex<String>);

impl Screen {
    fn add(&self, text: &str) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
        Ok(())
    }

    /// Moves the cursor; 0 would be taken for 1.
    fn go(&self, n: usize, direction: char) -> io::Result<()> {
        if n > 0 { self.add(&format!("\u{1b}[{n}{direction}")) } else { Ok(()) }
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        Term::stderr().size().1
    }

    fn height(&self) -> u16 {
        Term::stderr().size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.go(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.go(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.go(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.go(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.add(text)?;
        self.add("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.add(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.add("\r\u{1b}[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let drawing = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if !drawing.is_empty() {
            sink::write(Stream::Err, &drawing, Worth::Frame);
        }
        Ok(())
    }
}
