//! The command line of tenggat.
fn main() {}
