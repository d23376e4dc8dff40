//! TLS listeners and connectors.
