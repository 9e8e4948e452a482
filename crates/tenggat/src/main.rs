#![doc = include_str!("../README.md")]
//!
//! What follows is the page of the library that trains, with an example that its documentation tests run.
//!
#![doc = include_str!("../../tenggat-train/README.md")]

mod assets;
mod cli;
mod commands;
mod device;
mod events;
mod gpu_record;
mod hooks;
mod limit;
mod money;
mod number;
mod output;
mod process;
mod processor;
mod progress;
mod signals;
mod terms;
mod threads;
mod training_lines;
mod when;

use std::process::ExitCode;

use clap::CommandFactory;
use tenggat_plan::WallClock;

use cli::{Cli, Command};

fn main() -> ExitCode {
    // The budget runs from here: loading and caching are part of it.
    let clock = WallClock::start();
    let _closing = output::Closing;
    output::tell_panics();
    let cli: Cli = match output::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    output::start_logging(cli.verbose);
    match run(cli, clock) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complaint("error", &told(&error));
            ExitCode::from(1)
        }
    }
}

/// The error and its causes, those left out that it has told already.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

fn run(cli: Cli, clock: WallClock) -> anyhow::Result<()> {
    if let Some(threads) = cli.threads {
        threads::start(Some(threads))?;
    }
    threads::check_environment()?;
    // Runs have a deadline; they do not wait for whoever reads along.
    if matches!(cli.command, Command::Demo(_) | Command::Train(_) | Command::Task(_) | Command::Drive(_)) {
        output::detach();
        if cli.quiet {
            output::be_quiet();
        }
    }
    match cli.command {
        Command::Demo(args) => commands::demo(&args, clock, cli.device),
        Command::Train(args) => commands::train(&args, clock, cli.device),
        Command::Drive(args) => commands::drive(&args, clock, cli.device),
        Command::Check(args) => commands::check(&args, cli.device),
        Command::Init(args) => commands::init(&args),
        Command::Sample(args) => commands::sample(&args, cli.device),
        Command::Score(args) => commands::score(&args, cli.device),
        Command::Task(args) => commands::task(&args, clock, cli.device),
        Command::Plan(args) => commands::plan(&args),
        Command::Status(args) => commands::status(&args),
        Command::Serve(args) => commands::serve(&args, cli.device),
        Command::Watch(args) => commands::watch(&args),
        Command::Extend(args) => commands::extend(&args),
        Command::Plot(args) => commands::plot(&args),
        Command::Queue(args) => commands::queue(&args, cli.device),
        Command::Quantise(args) => commands::quantise(&args),
        Command::Bench(args) => commands::bench(&args, cli.device),
        Command::Doctor(args) => commands::doctor(&args, cli.device),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tenggat", &mut script);
            output::product(&String::from_utf8_lossy(&script))
        }
    }
}
