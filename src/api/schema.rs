//! Pure: the structural schema: one table for every built-in type.
