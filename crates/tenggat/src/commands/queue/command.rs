//! The actions of `tenggat queue`.

use anyhow::Context;
use tenggat_queue::{Entry, Program, Queue, State};

use super::add::{Terms, add};
use super::args::{Action, AddArgs, QueueArgs};
use super::list::{shown, table};
use super::runner::{self, Stopping};
use super::whereabouts::{folder, now_unix_s};
use crate::commands::status::width;
use crate::device::Choice;
use crate::output::{self, say};

/// Does what is asked of the queue.
pub fn queue(args: &QueueArgs, device: Choice) -> anyhow::Result<()> {
    let folder = folder()?;
    let open = || Queue::open(folder.path());
    match &args.action {
        Action::Add(args) => add_jobs(&mut open()?, args, device),
        Action::List { all, json } => {
            let entries = match Queue::open_existing(folder.path())? {
                Some(queue) => shown(queue.list()?, *all),
                None => Vec::new(),
            };
            list(&entries, *json)?;
            if !json && !folder.has_runner() && entries.iter().any(|entry| !entry.state.has_ended()) {
                say!("nobody runs the queue; start `tenggat queue run`, or `tenggat serve --run-queue`");
            }
            Ok(())
        }
        Action::Cancel { entries } => {
            let mut queue = open()?;
            for &entry in entries {
                match queue.cancel(entry, now_unix_s())? {
                    State::Running => say!("entry {entry} saves what it has trained and ends"),
                    _ => say!("entry {entry} is out of the queue"),
                }
            }
            Ok(())
        }
        Action::Move { entry, to } => {
            let place = open()?.move_entry(*entry, *to)?;
            say!("entry {entry} is number {place} of those that wait");
            Ok(())
        }
        Action::Run { stay } => runner::run(&folder, *stay, &Stopping::listen()?),
    }
}

fn add_jobs(queue: &mut Queue, args: &AddArgs, device: Choice) -> anyhow::Result<()> {
    let program = if args.drive { Program::Drive } else { Program::Train };
    let terms = Terms { budget_s: args.budget, by: args.by, name: args.name.as_deref(), program, device };
    let added = add(queue, &args.jobs, &terms)?;
    let entries: Vec<Entry> = queue.list()?.into_iter().filter(|entry| added.contains(&entry.id)).collect();
    output::block(&table(&entries, width()));
    Ok(())
}

fn list(entries: &[Entry], json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&entries).context("cannot print the queue");
    }
    if entries.is_empty() {
        say!("the queue is empty; `tenggat queue add my_job.yaml` puts a job into it");
        return Ok(());
    }
    output::block(&table(entries, width()));
    Ok(())
}
