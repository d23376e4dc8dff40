//! Time and the Clock.
