//! One validated Config.
