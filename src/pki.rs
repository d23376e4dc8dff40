//! Certificate authorities, leaf certificates, kubeconfigs.
