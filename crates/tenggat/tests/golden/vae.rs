//! VAE: encode and decode against the reference.
