//! A crash at every statement of a saga: the connection is cut, or the process
//! is killed, right before PostgreSQL gets the statement, and right after it
//! has executed it. Whoever comes next finishes what was begun. And a registry
//! that has forgotten what it did, since its database was restored.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![expect(clippy::print_stdout, reason = "a test may say how much it did")]

mod create;
mod fences;
mod installation;
mod points;
mod purge;
mod restore;
mod spares;
mod waves;
