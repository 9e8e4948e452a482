//! The streams of a device, by number.

/// Where all work goes that is not told otherwise.
pub(crate) const MAIN: usize = 0;
/// The second stream of a captured graph.
pub(crate) const SIDE: usize = 1;
/// How many there are.
pub(crate) const STREAMS: usize = 2;
