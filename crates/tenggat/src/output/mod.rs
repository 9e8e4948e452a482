//! Everything that the program prints. No other place writes to the terminal: lints deny it.
//!
//! Three promises hold here for all text, whoever says it. A stream that is closed, full or gone ends
//! nothing. A reader that stops reading delays no run. Control characters from files and arguments are shown,
//! not obeyed.

mod bar;
mod escape;
mod hooks;
mod print;
mod quiet;
mod screen;
mod sink;
mod terminal;

pub use bar::Bar;
pub use hooks::{start_logging, tell_panics};
pub use print::{
    Closing, aside, block, complaint, event, json, json_line, leave_stdout_to_events, line, parse, product,
    stdout_for_people,
};
pub(crate) use print::{note, say, warning};
pub use quiet::be_quiet;
pub use screen::{bar_width, draws_on_stdout, is_unread, screen, sparkline, width};
pub use sink::detach;
pub use terminal::shows_bars;
