//! What one server serves.

use std::net::SocketAddr;

use crate::guard::Token;
use crate::runs::Runs;

/// The runs, who may change them, and where the server listens.
#[derive(Debug)]
pub(crate) struct Site {
    pub runs: Runs,
    pub token: Token,
    pub address: SocketAddr,
}
