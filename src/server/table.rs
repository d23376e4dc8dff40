//! Pure: kubectl columns.
