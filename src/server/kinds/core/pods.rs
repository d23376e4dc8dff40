//! Pods: everything the API server knows about them but their defaults (`pod_defaults`), spec rules (`pod_spec`) and QoS.

use super::{app_armor, pod_defaults, pod_update, qos};
use crate::api::client::Future;
use crate::api::object::Object;
use crate::api::request::{Response, User};
use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result, Status};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::kinds::{none, success};
use crate::server::strategy::{Column, Context, Selectable, Strategy, begin_status_update, count_generation, restore};
use crate::server::table;
use crate::server::verbs::wrong_uid;
use crate::value;

pub struct Pods;

const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::new("Ready", "string"),
    Column::new("Status", "string"),
    Column::new("Restarts", "string"),
    Column::AGE,
    Column::wide("IP", "string"),
    Column::wide("Node", "string"),
    Column::wide("Nominated Node", "string"),
    Column::wide("Readiness Gates", "string"),
];

const SELECTABLE: &[Selectable] = &[
    Selectable::new("spec.nodeName", &["spec", "nodeName"]),
    Selectable::new("spec.restartPolicy", &["spec", "restartPolicy"]),
    Selectable::new("spec.schedulerName", &["spec", "schedulerName"]),
    Selectable::new("spec.serviceAccountName", &["spec", "serviceAccountName"]),
    Selectable { label: "spec.hostNetwork", path: &["spec", "hostNetwork"], absent: "false" },
    Selectable::new("status.phase", &["status", "phase"]),
    Selectable::new("status.podIP", &["status", "podIP"]),
    // Can be asked for, and is never there.
    Selectable::new("status.podIPs", &["status", "podIPs"]),
    Selectable::new("status.nominatedNodeName", &["status", "nominatedNodeName"]),
];

impl Strategy for Pods {
    fn resource(&self) -> &'static Resource {
        &resource::PODS
    }
    fn default(&self, object: &mut Value) {
        pod_defaults::pod(object);
    }

    fn prepare_create(&self, context: &Context, object: &mut Value) -> Result<()> {
        object.set(&["metadata", "generation"], 1);
        let mut status = value!({"phase": "Pending", "qosClass": qos::class(object)});
        if !object.list_at(&["spec", "schedulingGates"]).is_empty() {
            let gated = value!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates", "lastTransitionTime": context.now.to_string()}]);
            status.set(&["conditions"], gated);
        }
        object.set(&["status"], status);
        if object.i64_at(&["spec", "terminationGracePeriodSeconds"]).is_some_and(|n| n < 0) {
            object.set(&["spec", "terminationGracePeriodSeconds"], 1);
        }
        merge_match_label_keys(object);
        pod_defaults::drop_disabled(object.make_map(&["spec"]));
        app_armor::from_annotations(context, object);
        Ok(())
    }
    fn prepare_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        if new.i64_at(&["spec", "terminationGracePeriodSeconds"]).is_some_and(|n| n < 0) {
            new.set(&["spec", "terminationGracePeriodSeconds"], 1);
        }
        restore(new, old, "status");
        count_generation(new, old);
        Ok(())
    }
    fn prepare_status_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        begin_status_update(new, old);
        // Old kubelets sent owner references mangled, and the garbage collector believed them.
        match old.at(&["metadata", "ownerReferences"]) {
            Some(owners) => new.set(&["metadata", "ownerReferences"], owners.clone()),
            None => {
                new.remove(&["metadata", "ownerReferences"]);
            }
        }
        if new.str_at(&["status", "qosClass"]).is_empty()
            && let Some(class) = old.at(&["status", "qosClass"])
        {
            new.set(&["status", "qosClass"], class.clone());
        }
        pod_defaults::pod(new);
        Ok(())
    }
    fn prepare_subresource_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        pod_update::keep_only(&context.subresource, new, old)?;
        count_generation(new, old);
        Ok(())
    }

    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        super::pod_spec::pod(object)
    }
    fn validate_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = super::pod_spec::any_pod(new);
        errors.extend(pod_update::annotations(new, old));
        errors.extend(pod_update::main(new, old));
        errors
    }
    fn validate_status_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        pod_update::status(new, old)
    }
    fn validate_subresource_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = super::pod_spec::any_pod(new);
        match context.subresource.as_str() {
            "ephemeralcontainers" => {
                errors.extend(pod_update::annotations(new, old));
                errors.extend(pod_update::ephemeral_containers(new, old));
            }
            "resize" => errors.extend(pod_update::resize(new, old)),
            _ => {}
        }
        errors
    }
    fn warnings(&self, _: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() { Vec::new() } else { super::pod_warnings::warnings("", object) }
    }

    fn returns_deleted(&self) -> bool {
        true
    }
    /// Pods stop in their own time; what never ran, or already ended, needs none.
    fn grace_seconds(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let own = object.i64_at(&["spec", "terminationGracePeriodSeconds"]);
        let wanted = requested.or(own).unwrap_or(30);
        let wanted = if wanted < 0 { 1 } else { wanted };
        let unscheduled = object.str_at(&["spec", "nodeName"]).is_empty();
        let ended = matches!(object.str_at(&["status", "phase"]), "Failed" | "Succeeded");
        Some(if unscheduled || ended { 0 } else { wanted })
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        row(object, now)
    }
    fn completed(&self, pod: &Value) -> Option<(&'static str, &'static str)> {
        match pod.str_at(&["status", "phase"]) {
            "Succeeded" => Some(("Succeeded", "The pod has completed successfully.")),
            "Failed" => Some(("Failed", "The pod failed.")),
            _ => None,
        }
    }
    fn selectable(&self, _: &'static Resource) -> &'static [Selectable] {
        SELECTABLE
    }

    fn create_subresource<'a>(&'a self, context: &'a Context, body: Value) -> Option<Future<'a, Result<Response>>> {
        match context.subresource.as_str() {
            "binding" => Some(Box::pin(bind(context, body, context.name.clone()))),
            "eviction" => Some(Box::pin(evict(context, body))),
            _ => None,
        }
    }
}

/// The legacy way to bind: POST to `bindings` itself.
pub struct Bindings;

impl Strategy for Bindings {
    fn resource(&self) -> &'static Resource {
        &resource::BINDINGS
    }
    fn review<'a>(&'a self, context: &'a Context, mut object: Value) -> Option<Future<'a, Result<Value>>> {
        // A binding has no identity of its own: what is there was made up for it, and would be taken for the pod's.
        object.remove(&["metadata", "uid"]);
        let name = object.str_at(&["metadata", "name"]).to_string();
        Some(Box::pin(async move {
            bind(context, object, name).await?;
            Ok(success(201))
        }))
    }
}

/// `matchLabelKeys` of spread constraints and pod affinity are turned into requirements on the pod's own label values.
fn merge_match_label_keys(pod: &mut Value) {
    let labels = pod.at(&["metadata", "labels"]).cloned().unwrap_or_default();
    let requirement = |key: &str, operator: &str| {
        let own = labels.str_at(&[key]);
        labels.get(key).map(|_| value!({"key": key, "operator": operator, "values": [own]}))
    };
    let merge = |term: &mut Value| {
        for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            let keys: Vec<String> = term.list_at(&[list]).iter().filter_map(Value::as_str).map(str::to_string).collect();
            if term.at(&["labelSelector"]).is_none() {
                continue;
            }
            for wanted in keys.iter().filter_map(|key| requirement(key, operator)) {
                let have = term.make_map(&["labelSelector"]).list_slot("matchExpressions");
                if !have.contains(&wanted) {
                    have.push(wanted);
                }
            }
        }
    };
    let spread = pod.at_mut(&["spec", "topologySpreadConstraints"]).and_then(Value::as_list_mut);
    spread.into_iter().flatten().for_each(merge);
    for kind in ["podAffinity", "podAntiAffinity"] {
        let required = pod.at_mut(&["spec", "affinity", kind, "requiredDuringSchedulingIgnoredDuringExecution"]);
        required.and_then(Value::as_list_mut).into_iter().flatten().for_each(merge);
        let preferred = pod.at_mut(&["spec", "affinity", kind, "preferredDuringSchedulingIgnoredDuringExecution"]);
        let terms = preferred.and_then(Value::as_list_mut).into_iter().flatten();
        terms.filter_map(|p| p.get_mut("podAffinityTerm")).for_each(merge);
    }
}

// --- binding and eviction

/// `/binding` answers with errors that have neither reason nor details for a bad target: so does upstream.
fn bare_error(errors: &[FieldError]) -> Status {
    let texts: Vec<String> = errors.iter().map(FieldError::to_string).collect();
    let message = if texts.len() == 1 { texts[0].clone() } else { format!("[{}]", texts.join(", ")) };
    Status::new(500, "", message)
}

async fn bind(context: &Context, body: Value, name: String) -> Result<Response> {
    if body.str_at(&["metadata", "name"]) != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let mut errors = Vec::new();
    let (kind, node) = (body.str_at(&["target", "kind"]).to_string(), body.str_at(&["target", "name"]).to_string());
    if !matches!(kind.as_str(), "" | "Node") {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        return Err(bare_error(&errors));
    }
    let change = |pod: &mut Value| assign(pod, &body, &node, context.now);
    context.calls.modify(context, &resource::PODS, &context.namespace, &name, &change).await?;
    Ok(Response::Value { value: success(201), code: 201 })
}

/// Sets the node, once.
fn assign(pod: &mut Value, binding: &Value, node: &str, now: Time) -> Result<()> {
    let name = pod.str_at(&["metadata", "name"]).to_string();
    let conflict = |why: String| {
        let message = format!("Operation cannot be fulfilled on pods/binding \"{name}\": {why}");
        let mut status = Status::new(409, "Conflict", message);
        let details = status.details.get_or_insert_default();
        (details.name, details.kind) = (name.clone(), "pods/binding".to_string());
        status
    };
    for (key, label) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
        let (want, have) = (binding.str_at(&["metadata", key]), pod.str_at(&["metadata", key]));
        if !want.is_empty() && want != have {
            if key == "uid" {
                return Err(wrong_uid(&resource::PODS, (pod.str_at(&["metadata", "namespace"]), &name), want, have));
            }
            let why = format!("Precondition failed: {label} in precondition: {want}, {label} in object meta: {have}");
            return Err(Status::conflict(&resource::PODS, &name, &why));
        }
    }
    if pod.at(&["metadata", "deletionTimestamp"]).is_some() {
        return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    let assigned = pod.str_at(&["spec", "nodeName"]);
    if !assigned.is_empty() {
        return Err(conflict(format!("pod {name} is already assigned to node \"{assigned}\"")));
    }
    if !pod.list_at(&["spec", "schedulingGates"]).is_empty() {
        return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    pod.set(&["spec", "nodeName"], node);
    for member in ["annotations", "labels"] {
        for (key, text) in binding.map_at(&["metadata", member]).into_iter().flat_map(|m| m.iter()) {
            // Labels the pod already has are its own; annotations of the binding win.
            if member == "annotations" || pod.at(&["metadata", member, key]).is_none() {
                pod.set(&["metadata", member, key], text.clone());
            }
        }
    }
    pod.remove(&["status", "nominatedNodeName"]);
    set_condition(pod, "PodScheduled", "True", now);
    Ok(())
}

fn set_condition(pod: &mut Value, kind: &str, status: &str, now: Time) {
    let conditions = pod.make_map(&["status"]).list_slot("conditions");
    let fresh = value!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": now.to_string()});
    match conditions.iter_mut().find(|c| c.str_at(&["type"]) == kind) {
        Some(have) if have.str_at(&["status"]) == status => {}
        Some(have) => *have = fresh,
        None => conditions.push(fresh),
    }
}

async fn evict(context: &Context, body: Value) -> Result<Response> {
    let named = body.str_at(&["metadata", "name"]);
    if !named.is_empty() && named != context.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let pod = context.access.get(&resource::PODS, &context.namespace, &context.name);
    let Some(pod) = pod else { return Err(Status::not_found(&resource::PODS, &context.name)) };
    let value = pod.value();
    // Nothing is disrupted by removing what does not run.
    let idle = matches!(value.str_at(&["status", "phase"]), "Pending" | "Succeeded" | "Failed");
    if !idle && value.at(&["metadata", "deletionTimestamp"]).is_none() {
        spend_budget(context, &value).await?;
    }
    let mut options = body.get("deleteOptions").cloned().unwrap_or_else(Value::map);
    if context.dry_run {
        options.set(&["dryRun"], value!(["All"]));
    }
    if options.at(&["preconditions"]).is_none() {
        options.set(&["preconditions", "uid"], pod.uid());
    }
    context.client(User::master()).delete(&resource::PODS, &context.namespace, &context.name, options).await?;
    Ok(Response::Value { value: success(201), code: 201 })
}

/// Takes one disruption from the budget that covers the pod; 429 if there is none left.
async fn spend_budget(context: &Context, pod: &Value) -> Result<()> {
    let covering = covering_budgets(context, pod);
    let budget = match covering.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::new(500, "InternalError", why));
        }
    };
    let ready = pod.list_at(&["status", "conditions"]).iter().any(|c| c.str_at(&["type"]) == "Ready" && c.str_at(&["status"]) == "True");
    let always_allow = budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow";
    if !ready && always_allow {
        return Ok(());
    }
    let name = pod.str_at(&["metadata", "name"]).to_string();
    let change = |budget: &mut Value| spend(budget, &name, ready, context.now);
    let budgets = &resource::PODDISRUPTIONBUDGETS;
    context.calls.modify(context, budgets, &context.namespace, budget.name(), &change).await.map(|_: Object| ())
}

fn covering_budgets(context: &Context, pod: &Value) -> Vec<Object> {
    let labels = pod.map_at(&["metadata", "labels"]).cloned().unwrap_or_default();
    let mut all = context.access.list(&resource::PODDISRUPTIONBUDGETS, &context.namespace);
    all.retain(|b| b.value().at(&["spec", "selector"]).is_some_and(|s| super::matches_selector(s, &labels)));
    all
}

fn spend(budget: &mut Value, pod: &str, ready: bool, now: Time) -> Result<()> {
    let number = |path: &[&str]| budget.i64_at(path).unwrap_or(0);
    let healthy_enough =
        number(&["status", "currentHealthy"]) >= number(&["status", "desiredHealthy"]) && number(&["status", "desiredHealthy"]) > 0;
    if !ready && healthy_enough {
        return Ok(());
    }
    let refuse = |cause: String| {
        let text = "Cannot evict pod as it would violate the pod's disruption budget.";
        let mut status = Status::new(429, "TooManyRequests", text).with_cause("DisruptionBudget", cause, "");
        status.details.get_or_insert_default().retry_after_seconds = 0;
        status
    };
    let name = budget.str_at(&["metadata", "name"]).to_string();
    if number(&["status", "observedGeneration"]) < number(&["metadata", "generation"]) {
        return Err(refuse(format!("The disruption budget {name} is still being processed by the server.")).retry_after(10));
    }
    let allowed = number(&["status", "disruptionsAllowed"]);
    if allowed <= 0 {
        let (want, have) = (number(&["status", "desiredHealthy"]), number(&["status", "currentHealthy"]));
        return Err(refuse(format!("The disruption budget {name} needs {want} healthy pods and has {have} currently")));
    }
    budget.set(&["status", "disruptionsAllowed"], allowed - 1);
    budget.set(&["status", "disruptedPods", pod], now.to_string());
    Ok(())
}

// --- the row kubectl prints

fn row(pod: &Value, now: Time) -> Vec<Value> {
    let (ready, total, status, restarts) = summary(pod, now);
    let or_none = |path: &[&str]| none(pod.str_at(path));
    let gates = pod.list_at(&["spec", "readinessGates"]);
    let conditions = pod.list_at(&["status", "conditions"]);
    let open = |gate: &&Value| {
        let wanted = gate.str_at(&["conditionType"]);
        conditions.iter().any(|c| c.str_at(&["type"]) == wanted && c.str_at(&["status"]) == "True")
    };
    let gates = match gates.len() {
        0 => "<none>".to_string(),
        n => format!("{}/{n}", gates.iter().filter(open).count()),
    };
    let ip = match pod.list_at(&["status", "podIPs"]).first() {
        Some(first) => none(first.str_at(&["ip"])),
        None => or_none(&["status", "podIP"]),
    };
    vec![
        pod.str_at(&["metadata", "name"]).into(),
        format!("{ready}/{total}").into(),
        status.into(),
        restarts.into(),
        table::age(pod, now).into(),
        ip.into(),
        or_none(&["spec", "nodeName"]).into(),
        or_none(&["status", "nominatedNodeName"]).into(),
        gates.into(),
    ]
}

/// Ready and total containers, the status word, and restarts with how long ago the last was.
fn summary(pod: &Value, now: Time) -> (usize, usize, String, String) {
    let inits = pod.list_at(&["spec", "initContainers"]);
    let is_sidecar = |name: &str| inits.iter().any(|c| c.str_at(&["name"]) == name && c.str_at(&["restartPolicy"]) == "Always");
    let sidecars = inits.iter().filter(|c| c.str_at(&["restartPolicy"]) == "Always").count();
    let total = pod.list_at(&["spec", "containers"]).len() + sidecars;
    let (mut ready, mut restarts, mut sidecar_restarts) = (0, 0, 0);
    let (mut last, mut last_sidecar) = (None, None);
    let condition = |kind: &str| pod.list_at(&["status", "conditions"]).iter().find(|c| c.str_at(&["type"]) == kind);
    let is_true = |kind: &str| condition(kind).is_some_and(|c| c.str_at(&["status"]) == "True");

    let mut reason = match pod.str_at(&["status", "reason"]) {
        "" => pod.str_at(&["status", "phase"]).to_string(),
        own => own.to_string(),
    };
    if condition("PodScheduled").is_some_and(|c| c.str_at(&["reason"]) == "SchedulingGated") {
        reason = "SchedulingGated".to_string();
    }
    let mut initializing = false;
    for (i, status) in pod.list_at(&["status", "initContainerStatuses"]).iter().enumerate() {
        let count = status.i64_at(&["restartCount"]).unwrap_or(0);
        let sidecar = is_sidecar(status.str_at(&["name"]));
        restarts += count;
        raise(&mut last, last_finish(status));
        if sidecar {
            sidecar_restarts += count;
            raise(&mut last_sidecar, last_finish(status));
        }
        let terminated = status.at(&["state", "terminated"]);
        let waiting = status.str_at(&["state", "waiting", "reason"]);
        if terminated.is_some_and(|t| t.i64_at(&["exitCode"]).unwrap_or(0) == 0) && !(sidecar && status.bool_at(&["started"])) {
            continue;
        }
        if sidecar && status.bool_at(&["started"]) {
            ready += usize::from(status.bool_at(&["ready"]));
            continue;
        }
        reason = match terminated {
            Some(t) => format!("Init:{}", ended(t)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", inits.len()),
        };
        initializing = true;
        break;
    }
    if !initializing || is_true("Initialized") {
        (restarts, last) = (sidecar_restarts, last_sidecar);
        let mut running = false;
        for status in pod.list_at(&["status", "containerStatuses"]).iter().rev() {
            restarts += status.i64_at(&["restartCount"]).unwrap_or(0);
            raise(&mut last, last_finish(status));
            let waiting = status.str_at(&["state", "waiting", "reason"]);
            if !waiting.is_empty() {
                reason = waiting.to_string();
            } else if let Some(t) = status.at(&["state", "terminated"]) {
                reason = ended(t);
            } else if status.bool_at(&["ready"]) && status.at(&["state", "running"]).is_some() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            reason = if is_true("Ready") { "Running" } else { "NotReady" }.to_string();
        }
    }
    if pod.at(&["metadata", "deletionTimestamp"]).is_some() {
        if pod.str_at(&["status", "reason"]) == "NodeLost" {
            reason = "Unknown".to_string();
        } else if !matches!(pod.str_at(&["status", "phase"]), "Failed" | "Succeeded") {
            reason = "Terminating".to_string();
        }
    }
    let restarts = match last {
        Some(then) if restarts > 0 => format!("{restarts} ({} ago)", table::duration(now.seconds - then)),
        _ => restarts.to_string(),
    };
    (ready, total, reason, restarts)
}

fn ended(terminated: &Value) -> String {
    match (terminated.str_at(&["reason"]), terminated.i64_at(&["signal"]).unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated.i64_at(&["exitCode"]).unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_string(),
    }
}

fn last_finish(status: &Value) -> Option<i64> {
    Time::parse(status.str_at(&["lastState", "terminated", "finishedAt"])).ok().map(|t| t.seconds)
}

fn raise(to: &mut Option<i64>, at_least: Option<i64>) {
    *to = (*to).max(at_least);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(pod: Value) -> Vec<String> {
        let now = Time::parse("2020-01-01T01:00:00Z").unwrap();
        row(&pod, now).iter().take(4).map(|c| c.as_str().unwrap_or("").to_string()).collect()
    }

    #[test]
    fn rows_say_what_kubectl_says() {
        let spec = value!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]});
        let with = |status: Value| {
            let mut pod = value!({"metadata": {"name": "p", "creationTimestamp": "2020-01-01T00:00:00Z"}});
            pod.set(&["spec"], spec.clone());
            pod.set(&["status"], status);
            pod
        };
        let cases = [
            (value!({"phase": "Pending"}), ["p", "0/1", "Pending", "0"]),
            (
                value!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                ["p", "0/1", "Init:0/1", "0"],
            ),
            (
                value!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                ["p", "0/1", "Init:CrashLoopBackOff", "2"],
            ),
            (
                value!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 1, "state": {"running": {}},
                    "lastState": {"terminated": {"finishedAt": "2020-01-01T00:58:00Z"}}}]}),
                ["p", "1/1", "Running", "1 (2m ago)"],
            ),
            (
                value!({"phase": "Failed", "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 3}}}]}),
                ["p", "0/1", "ExitCode:3", "0"],
            ),
        ];
        for (status, want) in cases {
            assert_eq!(cells(with(status.clone())), want, "{status}");
        }
        let mut gone = with(value!({"phase": "Running"}));
        gone.set(&["metadata", "deletionTimestamp"], "2020-01-01T00:00:00Z");
        assert_eq!(cells(gone)[2], "Terminating");
    }

    #[test]
    fn a_pod_is_bound_once() {
        let now = Time::from_seconds(0);
        let mut pod = value!({"metadata": {"name": "p"}, "spec": {}});
        let binding = value!({"metadata": {"name": "p", "annotations": {"x": "y"}}});
        assign(&mut pod, &binding, "n1", now).unwrap();
        assert_eq!(pod.str_at(&["spec", "nodeName"]), "n1");
        assert_eq!(pod.str_at(&["metadata", "annotations", "x"]), "y");
        let again = assign(&mut pod, &binding, "n2", now).unwrap_err();
        assert_eq!(again.message, "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\"");
    }

    #[test]
    fn grace() {
        let running = value!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        assert_eq!(Pods.grace_seconds(&running, None), Some(30));
        assert_eq!(Pods.grace_seconds(&running, Some(5)), Some(5));
        assert_eq!(Pods.grace_seconds(&value!({"spec": {}}), None), Some(0));
        let ended = value!({"spec": {"nodeName": "n"}, "status": {"phase": "Succeeded"}});
        assert_eq!(Pods.grace_seconds(&ended, None), Some(0));
    }
}
