//! Pure: conditions.
