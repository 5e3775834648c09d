//! Every service in one process, with a private PostgreSQL: for development,
//! for tests, and for a look.

pub mod app;
pub mod cli;
pub mod data;
pub mod postgres;

mod demo;
mod health;
mod migrate;
mod password;
mod reset;
mod seed;
mod start;
mod token;
