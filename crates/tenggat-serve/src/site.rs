//! What one server serves.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::desk::Desk;
use crate::guard::Token;
use crate::runs::Runs;

/// The runs, who may change them, and where the server listens.
#[derive(Debug)]
pub(crate) struct Site {
    pub runs: Runs,
    pub token: Token,
    pub address: SocketAddr,
    /// Folder of the queue.
    pub queue: Option<PathBuf>,
    pub desk: Option<Arc<dyn Desk>>,
    /// Held while a job is checked.
    pub checking: Mutex<()>,
}
