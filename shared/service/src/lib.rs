//! What every process and every service of this suite has in common: how it
//! runs, serves, drains, and opens requests.

mod data;
mod edge;
pub mod etag;
pub mod filter;
mod limits;
pub mod names;
mod observe;
pub mod open;
pub mod page;
pub mod repeat;
mod run;
mod server;
mod stack;
mod telemetry;
pub mod text;
mod time;

pub use data::{DataApp, DataConfig, DataService};
pub use edge::Edge;
pub use limits::MAX_MESSAGE_BYTES;
pub use run::{EXIT_USAGE, run};
pub use server::{bind, serve};
pub use stack::{Health, Stack, StackBuilder};
pub use telemetry::{Format, Telemetry};
pub use time::timestamp;
