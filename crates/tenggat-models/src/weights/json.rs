//! Configuration files.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Reads a JSON file into its type.
///
/// # Errors
/// The file is missing, is not JSON, or lacks a field; the message names file, line and column.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::format(path, e.to_string()))
}
