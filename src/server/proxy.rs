//! Connect subresources, spliced to the kubelet.
