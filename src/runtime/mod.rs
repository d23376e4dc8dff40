//! Containers: speaks OCI, not Kubernetes.
