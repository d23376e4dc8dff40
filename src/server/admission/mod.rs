//! The ordered table of admission plugins.
