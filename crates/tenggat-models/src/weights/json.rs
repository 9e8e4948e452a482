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

/// Refuses a dimension that no model has, before anything is allocated by it.
///
/// # Errors
/// `value` is not within `least` to `most`; the message names `key`.
pub(crate) fn dimension(
    key: &str,
    value: usize,
    least: usize,
    most: usize,
) -> std::result::Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("`{key}` is {value}; expected {least} to {most}"))
}
