//! Pure: names of resources and amounts of them, as quotas, limits and containers have them.

use crate::api::quantity::Quantity;
use crate::server::cursor::At;
use crate::server::validation;

/// Beside these, `hugepages-…` and qualified names.
const STANDARD: [&str; 20] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];
const COUNTED: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
}

pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// A resource of somebody else's, such as a device.
pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && validation::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Counted in whole pieces.
pub fn is_counted(name: &str) -> bool {
    COUNTED.contains(&name) || is_extended(name)
}

/// Requests may stay below limits.
pub fn overcommits(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

pub fn is_standard_for_quota(name: &str) -> bool {
    is_huge_pages(name) || (STANDARD.contains(&name) && name != "storage")
}

fn is_standard_for_containers(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// What is wrong with the name of any resource.
pub fn any_name(name: &str) -> Vec<String> {
    let mut messages = validation::qualified_name(name);
    if messages.is_empty() && !name.contains('/') && !STANDARD.contains(&name) && !is_huge_pages(name) {
        messages.push("must be a standard resource type or fully qualified".to_string());
    }
    messages
}

/// Of one a container may have.
pub fn container_name(name: &str) -> Vec<String> {
    let mut messages = any_name(name);
    if !name.contains('/') {
        if !is_standard_for_containers(name) {
            messages.push("must be a standard resource for containers".to_string());
        }
    } else if !is_native(name) && !is_extended(name) {
        messages.push("doesn't follow extended resource name standard".to_string());
    }
    messages
}

/// Of one a quota may bound.
pub fn quota_name(name: &str) -> Vec<String> {
    let mut messages = any_name(name);
    if !name.contains('/') && !is_standard_for_quota(name) {
        messages.push("must be a standard resource for quota".to_string());
    }
    messages
}

/// An amount of `name`: not negative, and whole where pieces are counted.
pub fn amount(at: &At, name: &str) {
    let Some(q) = at.quantity() else { return };
    if q.sign() < 0 {
        at.invalid("must be greater than or equal to 0");
    }
    whole(at, name, &q);
}

pub fn whole(at: &At, name: &str, q: &Quantity) {
    if is_counted(name) && q.milli_value() % 1000 != 0 {
        at.invalid("must be an integer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(container_name("cpu"), Vec::<String>::new());
        assert_eq!(container_name("example.com/gpu"), Vec::<String>::new());
        assert_eq!(
            container_name("bogus"),
            ["must be a standard resource type or fully qualified", "must be a standard resource for containers"]
        );
        assert_eq!(container_name("pods"), ["must be a standard resource for containers"]);
        assert_eq!(quota_name("count/pods"), Vec::<String>::new());
        assert_eq!(quota_name("storage"), ["must be a standard resource for quota"]);
        assert!(is_counted("example.com/gpu") && !is_counted("cpu"));
    }
}
