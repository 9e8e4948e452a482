//! Lines, results and failures on their way to the streams.

use std::fmt::{self, Write as _};
use std::io::ErrorKind;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use serde::Serialize;

use super::quiet::is_quiet;
use super::sink::{self, Stream, Worth};
use super::terminal::has_colours;
use super::{bar, escape};

/// Whether standard output belongs to another program, see [`leave_stdout_to_events`].
static FOR_EVENTS: AtomicBool = AtomicBool::new(false);

/// From here on standard output has nothing but [`event`]s; what people read goes to standard error.
pub fn leave_stdout_to_events() {
    FOR_EVENTS.store(true, Ordering::Relaxed);
}

/// Where people read.
fn for_people() -> Stream {
    if FOR_EVENTS.load(Ordering::Relaxed) { Stream::Err } else { Stream::Out }
}

/// Standard output of a program that is run by the way, and whose text is for people.
#[expect(clippy::disallowed_methods, reason = "nothing is written here: the stream is passed on")]
pub fn stdout_for_people() -> Stdio {
    match for_people() {
        Stream::Out => Stdio::inherit(),
        Stream::Err => std::io::stderr().into(),
    }
}

/// Prints one line on standard output.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// Prints one line on standard error: news beside the results.
macro_rules! note {
    ($($text:tt)*) => { $crate::output::aside(format_args!($($text)*)) };
}
pub(crate) use note;

/// Prints a warning.
macro_rules! warning {
    ($($text:tt)*) => { $crate::output::aside(format_args!("warning: {}", format_args!($($text)*))) };
}
pub(crate) use warning;

/// One line on standard output; see [`say!`].
pub fn line(text: fmt::Arguments<'_>) {
    if is_quiet() {
        return;
    }
    print(for_people(), &format!("{}\n", escape::line(&text.to_string())));
}

/// One line on standard error; see [`note!`] and [`warning!`].
pub fn aside(text: fmt::Arguments<'_>) {
    print(Stream::Err, &format!("{}\n", escape::line(&text.to_string())));
}

/// Lines of our own making on standard output, such as a table; the last one is ended if need be.
pub fn block(text: &str) {
    print(for_people(), &ended(&escape::block(text)));
}

/// A failure of several lines on standard error, such as an excerpt of a job or a compiler's log. Further
/// lines are set in: no file's name can pose as a message of ours.
pub fn complaint(kind: &str, text: &str) {
    let mut shown = format!("{kind}: ");
    for (i, line) in escape::block(text).lines().enumerate() {
        let gap = if i > 0 && !line.starts_with([' ', '\t']) && !line.is_empty() { "  " } else { "" };
        let _ = writeln!(shown, "{gap}{line}");
    }
    print(Stream::Err, &ended(&shown));
}

/// One line of JSON on standard output, for a program that reads along. A reader that is gone or does not
/// keep up stops nothing.
///
/// # Errors
/// The value cannot be written as JSON.
pub fn event(value: &impl Serialize) -> serde_json::Result<()> {
    let text = serde_json::to_string(value)?;
    print(Stream::Out, &ended(&escape::json(&text)));
    Ok(())
}

/// A result that other programs read.
///
/// # Errors
/// As [`product`].
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    product(&ended(&escape::json(&text)))
}

/// The same on one line, as one of several values that are printed one by one.
///
/// # Errors
/// As [`json`].
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    product(&ended(&escape::json(&serde_json::to_string(value)?)))
}

/// Text that is what the command was called for, written as it is. A reader that has had enough is no
/// failure.
///
/// # Errors
/// It could not be written whole, as on a full disk: whoever uses it must know.
pub fn product(text: &str) -> anyhow::Result<()> {
    match sink::write_through(Stream::Out, text) {
        Err(e) if !is_gone(&e) => Err(e).context("the result cannot be written to standard output"),
        Err(_) => {
            super::screen::set_unread();
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Parses the command line; prints help, the version, or what was not understood.
///
/// # Errors
/// The exit code, if there is nothing to be run.
pub fn parse<T: clap::Parser>() -> Result<T, ExitCode> {
    let said = match T::try_parse() {
        Ok(parsed) => return Ok(parsed),
        Err(said) => said,
    };
    // The message quotes arguments between its own colours, so that they must be harmless before it is made.
    let harmless = std::env::args_os().map(|argument| escape::line(&argument.to_string_lossy()).into_owned());
    let (rendered, is_harmless) = match T::try_parse_from(harmless) {
        Err(said) => (said.render(), true),
        Ok(_) => (said.render(), false),
    };
    let stream = if said.use_stderr() { Stream::Err } else { Stream::Out };
    if is_harmless && has_colours(stream) {
        print(stream, &ended(&rendered.ansi().to_string()));
    } else {
        print(stream, &ended(&escape::block(&rendered.to_string())));
    }
    Err(ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(2)))
}

/// Writes what is left when the process ends, however it does.
pub struct Closing;

impl Drop for Closing {
    fn drop(&mut self) {
        sink::finish();
    }
}

pub(super) fn print(stream: Stream, text: &str) {
    bar::aside(|| sink::write(stream, text, Worth::Line));
}

fn ended(text: &str) -> String {
    if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

/// Whether the reader has gone: a closed pipe, a terminal that hung up (EIO).
fn is_gone(e: &std::io::Error) -> bool {
    e.kind() == ErrorKind::BrokenPipe || cfg!(unix) && e.raw_os_error() == Some(5)
}
