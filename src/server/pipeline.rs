//! The order every request passes.
