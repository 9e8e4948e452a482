//! The side of tenggat in a comparison that takes turns: arguments, threads, and timed calls as a script asks
//! for them.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "what it measured is its output")]

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::time::Instant;

/// Any error, to be printed.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Calls `serve` with the arguments `key=value`, on as many threads as `threads` says.
pub fn with_arguments(serve: fn(&HashMap<String, String>) -> Result<(), Error>) -> Result<(), Error> {
    let pairs = std::env::args().skip(1);
    let arguments: HashMap<String, String> =
        pairs.filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
    let threads = arguments.get("threads").map_or(Ok(0), |t| t.parse())?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    pool.install(|| serve(&arguments))
}

/// Says `ready`, then reads numbers, calls `run` so many times each, and prints the seconds of every call.
pub fn take(mut run: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let mut out = String::new();
        for _ in 0..line?.trim().parse::<usize>()? {
            let began = Instant::now();
            run()?;
            out += &format!("{:.6} ", began.elapsed().as_secs_f64());
        }
        println!("{}", out.trim_end());
        std::io::stdout().flush()?;
    }
    Ok(())
}
