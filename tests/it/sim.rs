//! Integration tests: the seeded whole-cluster simulation (`tests/sim`).

#[path = "../sim/mod.rs"]
#[allow(clippy::module_inception)] // the folder beside this file is the simulation itself
mod sim;
