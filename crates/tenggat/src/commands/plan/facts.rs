//! Dimensions of the model that a job names.

use anyhow::Context;
use tenggat_train::plan::job::ModelFacts;

use crate::assets;

/// The model of the job if it lies on this machine, else Qwen-Image and a note that says so.
pub fn facts(name_or_path: &str) -> anyhow::Result<(ModelFacts, Option<String>)> {
    let folder = match name_or_path {
        assets::MINI => assets::mini()?.join("model"),
        other => other.into(),
    };
    if folder.join("transformer/config.json").is_file() {
        let read = ModelFacts::read(&folder);
        return Ok((read.with_context(|| format!("the model in {}", folder.display()))?, None));
    }
    let note = (!name_or_path.starts_with("Qwen/Qwen-Image"))
        .then(|| format!("{name_or_path} is not on this machine; planned with the dimensions of Qwen-Image"));
    Ok((ModelFacts::qwen_image(), note))
}
