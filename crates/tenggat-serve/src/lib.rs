#![doc = include_str!("../README.md")]

mod answer;
mod asked;
mod desk;
mod guard;
mod numbers;
mod page;
mod queue;
mod routes;
mod runs;
mod server;
mod site;
mod stream;

pub use desk::{Checked, Desk, NewJob};
pub use server::{Options, Server, start};
