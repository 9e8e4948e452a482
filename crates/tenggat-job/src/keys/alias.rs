//! Keys of other trainers, which ai-toolkit does not know and would pass over in silence.

/// A key of another trainer, the section it is written in, and the key of that section it stands for.
const ALIASES: &[(&str, &str, &str)] = &[
    ("learning_rate", "train", "lr"),
    ("peak_lr", "train", "lr"),
    ("max_train_steps", "train", "steps"),
    ("max_steps", "train", "steps"),
    ("num_train_steps", "train", "steps"),
    ("num_steps", "train", "steps"),
    ("train_steps", "train", "steps"),
    ("train_batch_size", "train", "batch_size"),
    ("batchsize", "train", "batch_size"),
    ("optimizer_type", "train", "optimizer"),
    ("optimiser", "train", "optimizer"),
    ("optimizer_args", "train", "optimizer_params"),
    ("lr_scheduler_type", "train", "lr_scheduler"),
    ("scheduler", "train", "lr_scheduler"),
    ("lr_scheduler_args", "train", "lr_scheduler_params"),
    ("lr_warmup_steps", "train", "lr_scheduler_params"),
    ("mixed_precision", "train", "dtype"),
    ("max_gradient_norm", "train", "max_grad_norm"),
    ("timestep_sampling", "train", "timestep_type"),
    ("loss", "train", "loss_type"),
    ("network_dim", "network", "linear"),
    ("dim", "network", "linear"),
    ("lora_rank", "network", "linear"),
    ("r", "network", "linear"),
    ("network_module", "network", "type"),
    ("save_every_n_steps", "save", "save_every"),
    ("save_steps", "save", "save_every"),
    ("save_precision", "save", "dtype"),
    ("sample_every_n_steps", "sample", "sample_every"),
    ("sample_prompts", "sample", "prompts"),
    ("negative_prompt", "sample", "neg"),
    ("cfg_scale", "sample", "guidance_scale"),
    ("image_dir", "datasets[]", "folder_path"),
    ("image_folder", "datasets[]", "folder_path"),
    ("path", "datasets[]", "folder_path"),
    ("caption_extension", "datasets[]", "caption_ext"),
    ("resolutions", "datasets[]", "resolution"),
    ("repeats", "datasets[]", "num_repeats"),
    ("caption_dropout", "datasets[]", "caption_dropout_rate"),
    ("pretrained_model_name_or_path", "model", "name_or_path"),
    ("output_dir", "", "training_folder"),
];

/// The key that an unknown one, given by its path, most likely stands for.
pub(crate) fn meant(path: &str) -> Option<&'static str> {
    let section = path.strip_prefix("config.process[].")?;
    let (section, name) = section.rsplit_once('.').unwrap_or(("", section));
    ALIASES.iter().find(|(alias, at, _)| *alias == name && *at == section).map(|(_, _, key)| *key)
}
