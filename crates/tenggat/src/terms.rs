//! The terms of a run: what it may cost, and who is told of it.

use clap::Args;

use crate::hooks::HookArgs;
use crate::money::Money;

/// Options that `train`, `drive` and `task` share.
#[derive(Debug, Clone, Args)]
pub struct Terms {
    #[command(flatten)]
    pub money: Money,
    #[command(flatten)]
    pub hooks: HookArgs,
}
