//! The per-kind behaviour trait.
