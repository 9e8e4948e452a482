//! The terms of a run: what it may cost, and who is told of it.

use clap::Args;

use crate::money::Money;

/// Options that `train`, `drive` and `task` share.
#[derive(Debug, Clone, Args)]
pub struct Terms {
    #[command(flatten)]
    pub money: Money,
    #[command(flatten)]
    pub hooks: HookArgs,
}

/// Whom to tell of a run.
#[derive(Debug, Clone, Default, Args)]
pub struct HookArgs {
    /// Command to run when the run has ended, however it ended: stop the pod, send the file. Its environment
    /// has TENGGAT_STATUS (done or failed), TENGGAT_LORA, TENGGAT_STEPS and TENGGAT_RUN. A second Ctrl-C or
    /// SIGTERM, which ends the program at once, skips it.
    #[arg(long, value_name = "COMMAND")]
    pub then: Option<String>,
    /// Address to send JSON to when the run starts, slows down, saves and ends; signed with
    /// TENGGAT_WEBHOOK_SECRET.
    #[arg(long, value_name = "URL")]
    pub webhook: Option<String>,
}
