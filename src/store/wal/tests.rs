//! Cases for the log.
