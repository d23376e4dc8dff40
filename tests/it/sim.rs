//! Integration tests: the seeded whole-cluster simulation (`tests/sim`).

#[path = "../sim/mod.rs"]
mod sim;
