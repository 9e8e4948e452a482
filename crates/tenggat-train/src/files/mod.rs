//! Files that are whole or not there, and what is written as Python writes it.

pub mod atomic;
pub(crate) mod python_json;
pub(crate) mod tensor_file;
