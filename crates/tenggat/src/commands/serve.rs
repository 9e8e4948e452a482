//! `tenggat serve`: a page to watch runs in a browser.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use tenggat_serve::{Options, Server, start};

use super::queue::{self, Desk, Stopping};
use super::status::folder;
use crate::device::Choice;
use crate::output::{self, say, warning};

/// Where the page is unless told otherwise.
pub const PORT: u16 = 8675;

/// `tenggat serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Folder with runs, or of one run (default: `output` if there is one, else the current folder).
    pub folder: Option<PathBuf>,
    /// Port; 0 for any free one.
    #[arg(long, default_value_t = PORT)]
    pub port: u16,
    /// Address to listen on. Any other than that of this machine alone lets the network look at the runs.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,
    /// Also run the queue, and wait for more when nothing is left in it.
    #[arg(long)]
    pub run_queue: bool,
}

/// Serves until the process is ended.
pub fn serve(args: &ServeArgs, device: Choice) -> anyhow::Result<()> {
    let folder = folder(args.folder.as_deref())?;
    if !args.address.is_loopback() {
        warning!(
            "whoever can reach {} sees the runs and their images; an SSH tunnel needs no --address",
            args.address
        );
    }
    let server = begin(&folder, args.address, args.port, device)?;
    if args.run_queue {
        say!("Ctrl-C has the queue's runs save and end, and then ends the page.");
        return queue::run(&queue::folder()?, true, &Stopping::listen()?);
    }
    say!("Ctrl-C ends the page; the runs go on.");
    server.wait();
    Ok(())
}

/// Starts a server for these runs and says where.
///
/// # Errors
/// The port is taken.
pub fn begin(folder: &Path, address: IpAddr, port: u16, device: Choice) -> anyhow::Result<Server> {
    let folder = folder.to_path_buf();
    // Without a home there is no queue, which is no reason to show nothing.
    let queue = queue::folder().ok();
    let desk = queue.clone().map(|folder| Arc::new(Desk { folder, device }) as Arc<dyn tenggat_serve::Desk>);
    let queue = queue.map(|folder| folder.path().to_path_buf());
    let server = start(&Options { folder, address, port, queue, desk })
        .with_context(|| format!("cannot serve at {address}:{port}; give another --port, or 0 for any"))?;
    // Told even by `--quiet`: without the addresses the page is of no use.
    let (plain, with_token) = (server.url(), server.url_with_token());
    output::block(&format!("{:<14} {plain}\n{:<14} {with_token}", "page", "control page"));
    Ok(server)
}
