//! Typed views of the kinds our own logic reads; the only file naming the typed-API crate.
