//! Pure: cluster IPs and node ports.
