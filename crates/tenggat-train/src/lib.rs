//! tenggat-train
