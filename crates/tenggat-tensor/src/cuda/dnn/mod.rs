//! placeholder until merged
use std::path::PathBuf;
#[derive(Debug)]
pub(crate) struct Dnn;
impl Dnn {
    pub fn open(_: cudarc::cudnn::sys::cudaStream_t, _: Option<PathBuf>) -> Result<Self, String> {
        Err("none".into())
    }
}
