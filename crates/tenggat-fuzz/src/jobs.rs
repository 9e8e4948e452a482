//! Job files.

pub mod job {
    //! A job in YAML or JSON, down to the decided job.

    use std::path::Path;

    use tenggat_job::Job;

    /// See the module.
    pub fn run(bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let variable = |name: &str| (name != "UNSET").then(|| format!("value of {name}"));
        match Job::from_str(&text, Path::new("job.yaml"), None, &variable) {
            Ok((job, warnings)) => {
                assert!(!job.datasets.is_empty() && !job.name.is_empty());
                warnings.iter().for_each(|warning| drop(warning.place.excerpt()));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }

    /// The jobs of `examples/`.
    pub fn seeds() -> Vec<Vec<u8>> {
        [
            include_str!("../../../examples/mini_cpu.yaml"),
            include_str!("../../../examples/note_qwen_image.yaml"),
            include_str!("../../../examples/qwen_image_24gb.yaml"),
        ]
        .map(|text| text.as_bytes().to_vec())
        .into()
    }
}
