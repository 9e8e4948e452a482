//! How a device is opened.

use std::path::PathBuf;

use crate::{Error, Result};

/// How a device is opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Folders with NVIDIA's libraries, before all other places.
    pub libraries: Vec<PathBuf>,
    /// Folder that keeps compiled kernels and plans for the next time; without one they are made again.
    pub cache: Option<PathBuf>,
    /// Number of the GPU among those that the driver shows.
    pub ordinal: usize,
    /// What is not used although the device has it.
    pub without: Without,
}

/// Parts that are not used although the device has them: to get round one that fails, and to measure what
/// each gains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Without {
    /// cuDNN: attention runs on our own kernels, however long that takes.
    pub dnn: bool,
    /// CUDA graphs: every kernel is launched on its own.
    pub graphs: bool,
    /// A second stream inside graphs.
    pub streams: bool,
    /// Timing the ways of computing a product: the library's first guess stays.
    pub timing: bool,
    /// Products of 8-bit floats.
    pub fp8: bool,
    /// Scales per row and column within products of 8-bit floats: they are applied behind them, as on cards
    /// other than Hopper's.
    pub fp8_scales: bool,
    /// The check before the first run on a card.
    pub check: bool,
}

impl Options {
    /// What the environment says: `TENGGAT_CUDA_LIBRARIES`, folders as in `PATH`; `TENGGAT_CACHE`, whose
    /// folder `kernels` keeps what was compiled; `TENGGAT_WITHOUT`, see [`Without`].
    ///
    /// # Errors
    /// `TENGGAT_WITHOUT` names something else than the parts.
    pub fn from_env() -> Result<Self> {
        let set = std::env::var_os;
        let without = set("TENGGAT_WITHOUT").map(|parts| parts.to_string_lossy().parse()).transpose()?;
        Ok(Options {
            libraries: std::env::split_paths(&set("TENGGAT_CUDA_LIBRARIES").unwrap_or_default())
                .filter(|folder| !folder.as_os_str().is_empty())
                .collect(),
            cache: set("TENGGAT_CACHE").map(|folder| PathBuf::from(folder).join("kernels")),
            ordinal: 0,
            without: without.unwrap_or_default(),
        })
    }
}

impl Without {
    /// What either goes without.
    pub fn and(self, other: Self) -> Self {
        Without {
            dnn: self.dnn || other.dnn,
            graphs: self.graphs || other.graphs,
            streams: self.streams || other.streams,
            timing: self.timing || other.timing,
            fp8: self.fp8 || other.fp8,
            fp8_scales: self.fp8_scales || other.fp8_scales,
            check: self.check || other.check,
        }
    }
}

impl std::str::FromStr for Without {
    type Err = Error;

    /// Names with commas between, such as `dnn,graphs`.
    fn from_str(text: &str) -> Result<Self> {
        let mut without = Without::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let switch = match part {
                "dnn" => &mut without.dnn,
                "graphs" => &mut without.graphs,
                "streams" => &mut without.streams,
                "timing" => &mut without.timing,
                "fp8" => &mut without.fp8,
                "fp8-scales" => &mut without.fp8_scales,
                "check" => &mut without.check,
                _ => {
                    return Err(Error::Failed(format!(
                        "TENGGAT_WITHOUT: unknown part `{part}`; use dnn, graphs, streams, timing, fp8, \
                         fp8-scales or check, with commas between"
                    )));
                }
            };
            *switch = true;
        }
        Ok(without)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_switched_off_by_name() {
        let parse = |text: &str| text.parse::<Without>();
        assert_eq!(parse("").unwrap(), Without::default());
        let both = Without { dnn: true, streams: true, ..Without::default() };
        assert_eq!(parse("dnn, streams,").unwrap(), both);
        assert_eq!(parse("dnn").unwrap().and(parse("streams").unwrap()), both);
        let error = parse("dnn,lanes").unwrap_err().to_string();
        assert!(error.contains("`lanes`") && error.contains("graphs"), "{error}");
    }
}
