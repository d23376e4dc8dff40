//! Event recording.
