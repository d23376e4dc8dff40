//! Replicated, revisioned, watchable bytes.
