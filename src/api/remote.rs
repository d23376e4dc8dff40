//! Client over HTTPS.
