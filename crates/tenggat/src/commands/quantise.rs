//! `tenggat quantise`: a quantised model made ahead of the runs that use it.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::Context;
use clap::Args;
use tenggat_models::transformer::Transformer;
use tenggat_models::weights::Quantisation;
use tenggat_tensor::weight::Format;

use super::model::{locate_file, locate_unless};
use crate::assets;
use crate::output::{Bar, say};
use crate::progress::quantisation_bar;
use crate::signals;

/// `tenggat quantise`.
#[derive(Debug, Args)]
pub struct QuantiseArgs {
    /// Model folder, hub id, or `mini` for the built-in model.
    model: String,
    /// Format, and a recovery adapter after `|`, as in a job: uint3, qfloat8, `uint3|adapter.safetensors`.
    #[arg(long, value_name = "TYPE")]
    qtype: String,
    /// Folder to store quantised models in (default: the one that runs read).
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
}

/// Quantises, or finds that it was done before, and prints the file.
pub fn quantise(args: &QuantiseArgs) -> anyhow::Result<()> {
    let (format, adapter) = match args.qtype.split_once('|') {
        Some((format, adapter)) => (format.trim(), Some(adapter.trim())),
        None => (args.qtype.trim(), None),
    };
    let format = format.parse::<Format>().context("--qtype")?;
    let stop = signals::listen(1)?;
    let interrupt = stop.interrupt();
    let recovery =
        adapter.map(|name| locate_file(name, interrupt)).transpose().context("accuracy recovery adapter")?;
    let cache = match &args.cache {
        Some(folder) => folder.clone(),
        None => assets::cache_folder()?,
    };
    let folder = locate_unless(&args.model, interrupt)?.join("transformer");
    let bar: OnceLock<Bar> = OnceLock::new();
    let show = |done, total| bar.get_or_init(|| quantisation_bar(total)).set_position(done);
    let wanted = Quantisation { format, recovery, cache: Some(cache) };
    let file = Transformer::quantise(&folder, &wanted, &show, interrupt)?;
    let done = if bar.into_inner().is_some() { "quantised" } else { "there already" };
    let size = std::fs::metadata(&file).with_context(|| file.display().to_string())?.len();
    say!("{done:<14} {} ({:.2} GB)", file.display(), size as f64 / 1e9);
    Ok(())
}
