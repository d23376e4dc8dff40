//! Pure: shared validators.
