//! Pure: the controller engine.
