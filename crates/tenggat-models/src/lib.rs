//! tenggat-models
