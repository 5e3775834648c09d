//! What holds for every method, tried on each one that the descriptors name: a
//! new method is part of it as soon as it has an example in `examples.json`.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod authorization;
mod door;
mod floods;
mod forge;
mod input;
mod isolation;
mod metadata;
mod methods;
mod repeats;
mod tokens;
mod world;
