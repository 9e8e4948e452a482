#![doc = include_str!("../README.md")]

mod answer;
mod asked;
mod guard;
mod numbers;
mod page;
mod routes;
mod runs;
mod server;
mod site;
mod stream;

pub use server::{Options, Server, start};
