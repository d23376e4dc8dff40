//! Resources with their strategies.
