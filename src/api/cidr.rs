//! Pure: CIDR arithmetic.
