//! Shows users the resolver of this node: one EndpointSlice of the `kube-dns` Service.
//!
//! For looking at only: this node's proxy leads the cluster's DNS address to its own resolver whatever is stored.

use std::net::Ipv4Addr;
use std::time::Duration;

use tracing::{debug, warn};

use crate::api::client::Client;
use crate::api::resource::ENDPOINTSLICES;
use crate::api::status::Status;
use crate::api::value::{Map, Value};

const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";
const RETRY_MS_MIN: u64 = 250;
const RETRY_MS_MAX: u64 = 60_000;

/// What is stored for the resolver of `node` at `ip`.
pub fn resolver_slice(node: &str, ip: Ipv4Addr) -> Value {
    let map = |entries: Vec<(&'static str, Value)>| Value::Map(entries.into_iter().collect::<Map>());
    let port = |name: &str, protocol: &str| map(vec![("name", name.into()), ("protocol", protocol.into()), ("port", 53.into())]);
    let labels =
        map(vec![("kubernetes.io/service-name", SERVICE.into()), ("endpointslice.kubernetes.io/managed-by", "net.coracle".into())]);
    let conditions = map(vec![("ready", true.into()), ("serving", true.into()), ("terminating", false.into())]);
    let endpoint =
        map(vec![("addresses", Value::List(vec![ip.to_string().into()])), ("conditions", conditions), ("nodeName", node.into())]);
    map(vec![
        ("apiVersion", "discovery.k8s.io/v1".into()),
        ("kind", "EndpointSlice".into()),
        ("metadata", map(vec![("name", format!("{SERVICE}-{node}").into()), ("namespace", NAMESPACE.into()), ("labels", labels)])),
        ("addressType", "IPv4".into()),
        ("endpoints", Value::List(vec![endpoint])),
        ("ports", Value::List(vec![port("dns", "UDP"), port("dns-tcp", "TCP")])),
    ])
}

/// Stores `slice`, trying until it is there. The namespace may be younger than this node.
pub async fn resolver(client: Client, slice: Value) {
    let mut retry_ms = RETRY_MS_MIN;
    while let Err(status) = store(&client, &slice).await {
        if retry_ms >= RETRY_MS_MAX {
            warn!(error = %status, "cannot show this node's resolver as an endpoint of kube-dns");
        } else {
            debug!(error = %status, retry_ms, "cannot show this node's resolver yet");
        }
        tokio::time::sleep(Duration::from_millis(retry_ms)).await;
        retry_ms = (retry_ms * 2).min(RETRY_MS_MAX);
    }
}

async fn store(client: &Client, slice: &Value) -> Result<(), Status> {
    let name = slice.str_at(&["metadata", "name"]);
    let current = match client.get(&ENDPOINTSLICES, NAMESPACE, name).await {
        Ok(object) => object,
        Err(status) if status.code == 404 => return client.create(&ENDPOINTSLICES, NAMESPACE, slice.clone()).await.map(|_| ()),
        Err(status) => return Err(status),
    };
    let mut wanted = current.value();
    for key in ["endpoints", "ports"] {
        wanted.set(&[key], slice.at(&[key]).cloned());
    }
    for (key, value) in slice.map_at(&["metadata", "labels"]).into_iter().flat_map(Map::iter) {
        wanted.set(&["metadata", "labels", key], value.clone());
    }
    if wanted == current.value() {
        return Ok(());
    }
    client.update(&ENDPOINTSLICES, "", wanted).await.map(|_| ())
}
