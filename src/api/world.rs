//! What controllers see.
