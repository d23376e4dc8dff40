//! The thin async shell of the controller engine.
