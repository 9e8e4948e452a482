//! What libraries and panics have to say.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::escape;
use super::print::print;
use super::sink::{self, Stream, Worth};
use super::terminal::has_colours;

/// Sends the log to standard error: `RUST_LOG` if set; else warnings, with `-v` information and with `-vv`
/// everything.
pub fn start_logging(verbose: u8) {
    let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| level.parse().unwrap_or_default());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .event_format(Lines { colours: has_colours(Stream::Err) })
        .with_writer(Log)
        .init();
}

/// One line for an event: its level, in colour if wanted, where it comes from, and what it says.
struct Lines {
    colours: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (level, target) = (event.metadata().level(), event.metadata().target());
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        let text = escape::line(&text);
        if self.colours {
            let colour = match *level {
                Level::ERROR => 31,
                Level::WARN => 33,
                Level::INFO => 32,
                Level::DEBUG => 34,
                Level::TRACE => 35,
            };
            writeln!(to, "\u{1b}[{colour}m{level:>5}\u{1b}[0m \u{1b}[2m{target}:\u{1b}[0m {text}")
        } else {
            writeln!(to, "{level:>5} {target}: {text}")
        }
    }
}

/// Where the log's lines go.
struct Log;

impl MakeWriter<'_> for Log {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        Log
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        print(Stream::Err, &String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Tells panics, which are bugs, in a line; `RUST_BACKTRACE=1` adds the calls that led there.
pub fn tell_panics() {
    std::panic::set_hook(Box::new(|info| {
        let said = info.payload();
        let text = said.downcast_ref::<&str>().copied().or(said.downcast_ref::<String>().map(String::as_str));
        let text = escape::line(text.unwrap_or("no message")).into_owned();
        let place = info.location().map_or(String::new(), |place| format!(" ({place})"));
        // Past the progress bar, which may be what panicked.
        let write = |text: &str| sink::write(Stream::Err, text, Worth::Line);
        write(&format!("error: this is a bug in tenggat: panicked with `{text}`{place}\n"));
        let calls = Backtrace::capture();
        if calls.status() == BacktraceStatus::Captured {
            write(&format!("{calls}\n"));
        }
    }));
}
