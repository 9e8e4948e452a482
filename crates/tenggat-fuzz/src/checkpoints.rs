//! Checkpoints.

pub mod state {
    //! Opens a checkpoint, resumes from it, and takes a step of the optimiser.

    use tenggat_models::lora::Lora;
    use tenggat_train::lora::average::Ema;
    use tenggat_train::run::fuzzing;
    use tenggat_train::step::optimiser::{AdamW8bitConfig, Method, Optimiser};

    use crate::loras::adapter;
    use crate::scratch::Scratch;

    /// Reads the bytes as they are, and again with the hash that belongs to them: a hash would keep all other
    /// faults out of reach.
    pub fn run(bytes: &[u8]) {
        resume(bytes);
        if let Some(signed) = fuzzing::signed(bytes) {
            resume(&signed);
        }
    }

    fn resume(bytes: &[u8]) {
        let scratch = Scratch::new();
        let path = scratch.write("resume.state", bytes);
        for method in methods() {
            let (mut lora, mut optimiser, mut ema) = trained(method);
            if fuzzing::resume(&path, &mut lora, &mut optimiser, &mut ema).is_ok() {
                step(&mut lora, &mut optimiser, &mut ema);
            }
        }
    }

    fn methods() -> [Method; 2] {
        [
            Method::default(),
            Method::AdamW8bit(AdamW8bitConfig { min_8bit_size: 4, ..AdamW8bitConfig::default() }),
        ]
    }

    fn trained(method: Method) -> (Lora, Optimiser, Ema) {
        let lora = adapter(2);
        let optimiser = Optimiser::new(method, Some(1.0), &lora).expect("a small optimiser");
        let ema = Ema::new(0.9, true, &lora).expect("a small average");
        (lora, optimiser, ema)
    }

    fn step(lora: &mut Lora, optimiser: &mut Optimiser, ema: &mut Ema) {
        let gradients = lora.parameters.duplicate().expect("a small tensor");
        optimiser.measure(&gradients).expect("a norm");
        optimiser.update(lora, &gradients, 1e-3).expect("a step");
        ema.update(lora).expect("an average");
    }

    /// A checkpoint of each optimiser after a step.
    pub fn seeds() -> Vec<Vec<u8>> {
        let scratch = Scratch::new();
        let path = scratch.path("resume.state");
        methods()
            .map(|method| {
                let (mut lora, mut optimiser, mut ema) = trained(method);
                step(&mut lora, &mut optimiser, &mut ema);
                fuzzing::save(&path, &lora, &optimiser, &ema).expect("a checkpoint");
                std::fs::read(&path).expect("a checkpoint")
            })
            .into()
    }
}
