//! Tables that training draws its timesteps and loss weights from, as ai-toolkit builds them.
//!
//! A table has 1000 entries, falling from pure noise (t = 1000, σ = 1). Training draws an *index*, so that a
//! table's spacing is the density of the timesteps. Source: ai-toolkit
//! `toolkit/samplers/custom_flowmatch_sampler.py`.

mod weighted;

use tenggat_models::qwen_image::Scheduler;

use weighted::WEIGHTED_MILLIONTHS;

/// Entries of every table.
pub const ENTRIES: usize = 1000;

/// Timesteps 1000, 999, …, 1: `linear` and `weighted`, which differ in the loss weights alone.
pub fn linear() -> Vec<f64> {
    (1..=ENTRIES).rev().map(|t| t as f64).collect()
}

/// Timesteps of the sampling schedule for an image of this many tokens (latent height · width / 4): `shift`,
/// `flux_shift` and `lumina2_shift`. Has as many entries as the scheduler has training timesteps.
pub fn shifted(scheduler: &Scheduler, image_tokens: usize) -> Vec<f64> {
    let scale = scheduler.num_train_timesteps() as f64;
    scheduler.train_sigmas(image_tokens).into_iter().map(|sigma| sigma * scale).collect()
}

/// Loss weight of each entry of the linear table for `timestep_type: weighted`; mean 1, 0.44 to 1.53.
pub fn weighted_loss_weights() -> Vec<f64> {
    WEIGHTED_MILLIONTHS.iter().map(|&w| f64::from(w) * 1e-6).collect()
}

/// Loss weight of each entry for `linear_timesteps: true`: the bell `exp(−2·((i − 500)/1000)²)`, lowered so
/// that its least value is 0 and scaled to mean 1.
pub fn bell_loss_weights() -> Vec<f64> {
    let bell = |i: usize| (-2.0 * ((i as f64 - 500.0) / ENTRIES as f64).powi(2)).exp();
    let lowest = bell(0);
    let total: f64 = (0..ENTRIES).map(|i| bell(i) - lowest).sum();
    (0..ENTRIES).map(|i| (bell(i) - lowest) * ENTRIES as f64 / total).collect()
}

/// Loss weight of each entry for `linear_timesteps2: true`: the bell, its second half (little noise) raised
/// to its peak. The mean is 1.289, not 1: upstream scales before it raises.
pub fn half_bell_loss_weights() -> Vec<f64> {
    let mut weights = bell_loss_weights();
    let peak = weights[ENTRIES / 2];
    weights[ENTRIES / 2..].fill(peak);
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_their_documented_ends_and_means() {
        let mean = |w: &[f64]| w.iter().sum::<f64>() / w.len() as f64;
        let t = linear();
        assert_eq!((t.len(), t[0], t[999]), (1000, 1000.0, 1.0));
        let w = weighted_loss_weights();
        assert!((mean(&w) - 1.0).abs() < 1e-6 && w.iter().all(|w| (0.44..1.53).contains(w)));
        let bell = bell_loss_weights();
        assert_eq!(bell[0], 0.0);
        assert!((mean(&bell) - 1.0).abs() < 1e-12);
        let half = half_bell_loss_weights();
        assert!(half[..500] == bell[..500] && half[500..].iter().all(|&w| w == bell[500]));
    }
}
