//! Pure: label and field selectors.
