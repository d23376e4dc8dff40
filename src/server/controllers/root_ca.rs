//! Pure: every namespace has a ConfigMap `kube-root-ca.crt` with the certificate of the cluster's CA.

use super::service_account::namespace_of;
use crate::api::controller::{Action, Controller, Key, Touched, Turn, World};
use crate::api::resource::{CONFIGMAPS, NAMESPACES, Resource};
use crate::api::value::Value;

pub struct RootCa {
    data: Value,
}

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as \
                           the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
                           Kubernetes clusters.";

impl RootCa {
    pub fn new(pem: &str) -> RootCa {
        RootCa { data: crate::value!({"ca.crt": pem}) }
    }
}

impl Controller for RootCa {
    fn name(&self) -> &'static str {
        "root-ca-cert-publisher"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&NAMESPACES, &CONFIGMAPS]
    }

    fn touched(&self, change: &Touched, _: &World) -> Vec<Key> {
        namespace_of(change, &CONFIGMAPS, NAME)
    }

    fn reconcile(&self, key: &Key, world: &World, _: &Turn) -> Vec<Action> {
        let namespace = key.name.name.as_str();
        let Some(row) = world.get(key) else { return Vec::new() };
        if row.deleting {
            return Vec::new();
        }
        let Some(there) = world.find(&CONFIGMAPS, namespace, NAME) else {
            let mut object = crate::value!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": NAME, "namespace": namespace, "annotations": {"kubernetes.io/description": DESCRIPTION}}});
            object.set(&["data"], self.data.clone());
            return vec![Action::Create { resource: &CONFIGMAPS, object, then: None }];
        };
        if there.deleting || there.value().at(&["data"]) == Some(&self.data) {
            return Vec::new();
        }
        let mut object = there.value();
        object.set(&["data"], self.data.clone());
        vec![Action::Update { resource: &CONFIGMAPS, subresource: "", object, then: None }]
    }
}
