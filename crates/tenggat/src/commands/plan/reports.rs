//! `tenggat plan reports`: forecasts held against what people report.

use anyhow::Context;
use tenggat_plan::{Report, ReportComparison};

use super::args::ReportsArgs;
use crate::output::{self, say};

/// Prints how far forecasts and reports agree.
pub fn reports(args: &ReportsArgs) -> anyhow::Result<()> {
    let comparison = match &args.file {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            ReportComparison::new(&Report::read_all(&text).with_context(|| path.display().to_string())?)
        }
        None => ReportComparison::new(tenggat_plan::reports()),
    };
    if args.json {
        return output::json(&comparison);
    }
    for speed in &comparison.speeds {
        let inside = if speed.inside { "" } else { "  outside" };
        say!(
            "{:24} {:16} {:18} {:>12} s, forecast {} s{inside}",
            speed.id,
            speed.program,
            speed.card,
            speed.reported_s.to_string(),
            speed.forecast_s
        );
    }
    say!("");
    output::block(&comparison.to_string());
    Ok(())
}
