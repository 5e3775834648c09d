//! What every process and every service of this suite has in common: how it
//! runs, serves, drains, and opens requests.

pub mod admin;
mod config;
mod data;
mod data_process;
mod edge;
pub mod etag;
pub mod filter;
mod health;
mod late;
mod limits;
pub mod mask;
mod metrics;
pub mod names;
mod observe;
pub mod open;
pub mod page;
mod process;
mod protocol;
pub mod repeat;
mod run;
mod server;
mod stack;
mod stopping;
mod telemetry;
pub mod text;
mod time;
mod tls;
mod trace;

pub use admin::Readiness;
pub use config::{config_option, parse_or_exit_usage, secret_file};
pub use data::{DataApp, DataConfig, DataService};
pub use edge::Edge;
pub use health::Health;
pub use limits::MAX_MESSAGE_BYTES;
pub use process::{Door, Served, serve_process};
pub use run::{EXIT_USAGE, run};
pub use server::{bind, serve};
pub use stack::{Stack, StackBuilder};
pub use telemetry::{Format, Telemetry};
pub use time::timestamp;
pub use tls::{client_tls, pem_file, server_tls};
