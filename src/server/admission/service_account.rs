//! Every pod runs as a ServiceAccount and, unless it opts out, finds a token for it in the usual place.

use crate::api::protobuf::{ALL, Only};
use crate::api::resource::{self};
use crate::api::status::{Result, Status};
use crate::api::value::{Map, Value};
use crate::server::strategy::{Context, Operation, Plugin};
use crate::value;

pub struct ServiceAccount;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_SECONDS: i64 = 3607;
/// What a pod takes from its account.
const READ: Only = Only::these(&[("automountServiceAccountToken", ALL), ("imagePullSecrets", ALL)]);

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }
    fn mutate(&self, context: &Context, pod: &mut Value, _: Option<&Value>) -> Result<()> {
        if !is_pod_create(context) {
            return Ok(());
        }
        // A mirror pod runs whatever the node was told to run.
        if pod.at(&["metadata", "annotations", "kubernetes.io/config.mirror"]).is_some() {
            return Ok(());
        }
        if pod.str_at(&["spec", "serviceAccountName"]).is_empty() {
            pod.set(&["spec", "serviceAccountName"], "default");
            pod.set(&["spec", "serviceAccount"], "default");
        }
        let name = pod.str_at(&["spec", "serviceAccountName"]).to_string();
        let account = context.access.get(&resource::SERVICEACCOUNTS, &context.namespace, &name);
        let Some(account) = account else {
            let namespace = &context.namespace;
            let why = format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
            return Err(Status::forbidden(context.resource, pod_name(context, pod), &why));
        };
        let account = account.decode_only(READ);
        if automounts(&account, pod) {
            mount_token(pod, &format!("kube-api-access-{}", random_suffix()));
        }
        if pod.list_at(&["spec", "imagePullSecrets"]).is_empty() {
            let secrets = account.list_at(&["imagePullSecrets"]);
            if !secrets.is_empty() {
                pod.set(&["spec", "imagePullSecrets"], secrets.to_vec());
            }
        }
        Ok(())
    }
    fn validate(&self, context: &Context, pod: &Value, _: Option<&Value>) -> Result<()> {
        let mirror = is_pod_create(context) && pod.at(&["metadata", "annotations", "kubernetes.io/config.mirror"]).is_some();
        if is_pod_create(context) && !mirror {
            let name = pod.str_at(&["spec", "serviceAccountName"]);
            let account = context.access.get(&resource::SERVICEACCOUNTS, &context.namespace, name);
            let account = account.filter(|a| a.str_at(&["metadata", "annotations", ENFORCE]) == "true");
            let wrong = account.and_then(|account| unmountable(&account.value(), name, pod));
            return wrong.map_or(Ok(()), |why| Err(Status::forbidden(context.resource, pod_name(context, pod), &why)));
        }
        if !mirror {
            return Ok(());
        }
        let refuse = |why: &str| Err(Status::forbidden(context.resource, pod_name(context, pod), why));
        if !pod.str_at(&["spec", "serviceAccountName"]).is_empty() {
            return refuse("a mirror pod may not reference service accounts");
        }
        if pod.list_at(&["spec", "volumes"]).iter().any(|v| v.at(&["secret"]).is_some()) {
            return refuse("a mirror pod may not reference secrets");
        }
        Ok(())
    }
}

/// The annotation of accounts whose pods can use no secrets but those the account lists.
pub const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";

/// The first secret a pod uses that its account does not list.
fn unmountable(account: &Value, account_name: &str, pod: &Value) -> Option<String> {
    let lists = |list: &str, name: &str| account.list_at(&[list]).iter().any(|s| s.str_at(&["name"]) == name);
    let unlisted = |secret: Option<&Value>, member: &str| -> Option<String> {
        let name = secret?.str_at(&[member]);
        (!lists("secrets", name)).then(|| name.to_string())
    };
    let why = |what: String, secret: String| {
        format!(
            "{what} secret.secretName=\"{secret}\" is not allowed because service account {account_name} does not reference that secret"
        )
    };
    let spec = |list: &str| pod.list_at(&["spec", list]);
    if let Some(secret) = spec("volumes").iter().find_map(|v| unlisted(v.at(&["secret"]), "secretName")) {
        return Some(why("volume with".to_string(), secret));
    }
    for (list, kind) in [("initContainers", "init container"), ("containers", "container")] {
        for container in spec(list) {
            let name = container.str_at(&["name"]);
            for variable in container.list_at(&["env"]) {
                if let Some(secret) = unlisted(variable.at(&["valueFrom", "secretKeyRef"]), "name") {
                    return Some(why(format!("{kind} {name} with envVar {} referencing", variable.str_at(&["name"])), secret));
                }
            }
            let from = container.list_at(&["envFrom"]).iter().find_map(|source| unlisted(source.at(&["secretRef"]), "name"));
            if let Some(secret) = from {
                return Some(why(format!("{kind} {name} with envFrom referencing"), secret));
            }
        }
    }
    let (i, pull) = spec("imagePullSecrets").iter().enumerate().find(|(_, s)| !lists("imagePullSecrets", s.str_at(&["name"])))?;
    let name = pull.str_at(&["name"]);
    Some(format!(
        "imagePullSecrets[{i}].name=\"{name}\" is not allowed because service account {account_name} does not reference that imagePullSecret"
    ))
}

fn is_pod_create(context: &Context) -> bool {
    let pods = context.resource.group.is_empty() && context.resource.plural == "pods";
    pods && context.operation == Operation::Create && context.is_main()
}

fn pod_name<'a>(context: &'a Context, pod: &'a Value) -> &'a str {
    if context.name.is_empty() { pod.str_at(&["metadata", "name"]) } else { &context.name }
}

/// The pod decides, then its account; the default is to mount.
fn automounts(account: &Value, pod: &Value) -> bool {
    let own = pod.at(&["spec", "automountServiceAccountToken"]).and_then(Value::as_bool);
    own.or_else(|| account.at(&["automountServiceAccountToken"]).and_then(Value::as_bool)).unwrap_or(true)
}

/// Mounts the token volume `fresh` in every container that has nothing there yet; adds the volume if it is used.
fn mount_token(pod: &mut Value, fresh: &str) {
    // An earlier pass (or the client) may have brought one.
    let existing = pod.list_at(&["spec", "volumes"]).iter().map(|v| v.str_at(&["name"])).find(|n| n.starts_with("kube-api-access-"));
    let volume = existing.unwrap_or(fresh).to_string();
    let had_volume = existing.is_some();
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let containers = pod.at_mut(&["spec", list]).and_then(Value::as_list_mut).into_iter().flatten();
        for container in containers.filter_map(Value::as_map_mut) {
            used |= mount(container, &volume);
        }
    }
    if used && !had_volume {
        let projected = value!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}});
        pod.make_map(&["spec"]).list_slot("volumes").push(projected);
    }
}

fn mount(container: &mut Map, volume: &str) -> bool {
    let mounts = container.list_slot("volumeMounts");
    let occupied = mounts.iter().any(|m| m.str_at(&["mountPath"]) == MOUNT_PATH);
    if !occupied {
        mounts.push(value!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
    }
    if mounts.is_empty() {
        container.remove("volumeMounts");
    }
    !occupied
}

/// Five letters as `generateName` makes them.
fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = [0u8; 5];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness");
    bytes.iter().map(|b| ALPHABET[usize::from(*b) % ALPHABET.len()] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_mounted_once_and_never_over_something() {
        let mut pod =
            value!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]}});
        mount_token(&mut pod, "kube-api-access-xxxxx");
        let containers = pod.list_at(&["spec", "containers"]);
        assert_eq!(containers[0].list_at(&["volumeMounts"])[0].str_at(&["name"]), "kube-api-access-xxxxx");
        assert_eq!(containers[1].list_at(&["volumeMounts"]).len(), 1);
        assert_eq!(pod.list_at(&["spec", "volumes"]).len(), 1);
        let once = pod.clone();
        mount_token(&mut pod, "kube-api-access-yyyyy");
        assert_eq!(pod, once);
        let off = value!({"spec": {"automountServiceAccountToken": false}});
        assert!(!automounts(&value!({}), &off));
        assert!(automounts(&value!({"automountServiceAccountToken": false}), &value!({"spec": {"automountServiceAccountToken": true}})));
    }
}
