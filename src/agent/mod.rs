//! The node: the kubelet over `runtime` and `net`.

pub mod clock;
pub mod kubelet;
pub mod qos;
