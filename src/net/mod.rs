//! Packets: pod network, services, DNS.
