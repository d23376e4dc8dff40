//! The generic verbs.
