//! Bytes to requests and back.
