//! The save section.

use super::resolver::{PROCESS, Resolver};
use crate::repository::is_repository;
use crate::values::{self, Deliver, SaveType};
use crate::{Push, Save, raw};

impl Resolver<'_> {
    pub(super) fn push(&mut self, raw: &raw::Save) -> Option<Push> {
        if raw.push_to_hub != Some(true) {
            return None;
        }
        match &raw.hf_repo_id {
            Some(name) if is_repository(name) => {
                Some(Push { repository: name.clone(), private: raw.hf_private.unwrap_or(false) })
            }
            other => {
                let message = format!("{other:?} is not a repository; expected account/name");
                self.wrong(&format!("{PROCESS}.save.hf_repo_id"), message);
                None
            }
        }
    }

    pub(super) fn save(&mut self, raw: raw::Save, best: bool, deliver: Deliver) -> Save {
        let at = |key: &str| format!("{PROCESS}.save.{key}");
        // Upstream ignores the format of a LoRA, and its web page writes `diffusers`.
        match raw.save_format.as_deref() {
            None | Some("safetensors" | "diffusers") => {}
            Some(other) => {
                let message = format!("{other:?} is not known; expected safetensors");
                self.wrong(&at("save_format"), message);
            }
        }
        Save {
            every: raw.save_every.unwrap_or(1000),
            best,
            deliver,
            keep: raw.max_step_saves_to_keep.unwrap_or(5),
            dtype: self.choose(&at("dtype"), raw.dtype.as_deref(), values::SAVE_TYPES, SaveType::F16),
        }
    }
}
