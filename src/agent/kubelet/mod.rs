//! The kubelet: one actor per pod around two pure functions.

pub mod admit;
pub mod env;
pub mod files;
pub mod observe;
pub mod plan;
pub mod pod;
pub mod restart;
pub mod spec;
pub mod status;
