//! Pure: resource quantities.
