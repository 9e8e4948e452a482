#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenggat_fuzz::run("latent_cache", bytes));
