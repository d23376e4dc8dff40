//! Pure: content negotiation.
