//! Dynamic resource allocation: classes of devices, slices that offer them, claims to them and templates of claims. What the
//! CEL selectors in them say is not looked at here.

use crate::api::quantity::Quantity;
use crate::api::resource;
use crate::api::status::FieldError;
use crate::api::value::{Map, Value};
use crate::server::cursor::{At, same};
use crate::server::kinds::core::{amounts, pod_defaults, volumes};
use crate::server::kinds::plain::{Cell, Plain, plain, string};
use crate::server::kinds::policy::conditions;
use crate::server::strategy::{Column, Context, NameRule, restore};
use crate::server::validation;

pub fn rows() -> Vec<Plain> {
    vec![
        Plain {
            rules: |new, _| device_class(&new.get("spec")),
            name_rule: NameRule::Custom(validation::long_name),
            generation: true,
            returns_deleted: true,
            ..plain(&resource::DEVICECLASSES, const { &[Column::NAME, Column::AGE] }, &[Cell::Name, Cell::Age])
        },
        Plain {
            default: |o| default_claim(o.make_map(&["spec"])),
            prepare_status: |_, new, old| restore(new, old, "metadata"),
            rules: |new, old| match old {
                None => claim_spec(&new.get("spec")),
                Some(old) => new.get("spec").immutable(&old.get("spec")),
            },
            status_rules: claim_status,
            returns_deleted: true,
            ..plain(
                &resource::RESOURCECLAIMS,
                const { &[Column::NAME, string("State"), Column::AGE] },
                &[Cell::Name, Cell::Custom(|o, _| print_state(o).into()), Cell::Age],
            )
        },
        Plain {
            default: |o| default_claim(o.make_map(&["spec", "spec"])),
            rules: |new, old| match old {
                None => {
                    volumes::template_metadata(&new.at(&["spec", "metadata"]));
                    claim_spec(&new.at(&["spec", "spec"]));
                }
                Some(old) => {
                    new.get("spec").immutable(&old.get("spec"));
                    claim_spec(&new.at(&["spec", "spec"]));
                }
            },
            returns_deleted: true,
            ..plain(&resource::RESOURCECLAIMTEMPLATES, const { &[Column::NAME, Column::AGE] }, &[Cell::Name, Cell::Age])
        },
        Plain {
            prepare: |context, o| {
                drop_disabled(o);
                note_taints(context, o);
            },
            prepare_update: |context, new, _| {
                drop_disabled(new);
                note_taints(context, new);
            },
            rules: resource_slice,
            selectable: const {
                &[
                    crate::server::strategy::Selectable::new("spec.nodeName", &["spec", "nodeName"]),
                    crate::server::strategy::Selectable::new("spec.driver", &["spec", "driver"]),
                ]
            },
            generation: true,
            returns_deleted: true,
            ..plain(
                &resource::RESOURCESLICES,
                const { &[Column::NAME, string("Node"), string("Driver"), string("Pool"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| volumes::or_unset(o.str_at(&["spec", "nodeName"]))),
                    Cell::Text(&["spec", "driver"]),
                    Cell::Text(&["spec", "pool", "name"]),
                    Cell::Age,
                ],
            )
        },
    ]
}

fn print_state(claim: &Value) -> String {
    let mut states = Vec::new();
    if claim.at(&["metadata", "deletionTimestamp"]).is_some() {
        states.push("deleted");
    }
    let allocated = claim.at(&["status", "allocation"]).is_some();
    match (allocated, claim.list_at(&["status", "reservedFor"]).is_empty()) {
        (false, _) if claim.at(&["metadata", "deletionTimestamp"]).is_none() => states.push("pending"),
        (false, _) => {}
        (true, reserved_for_none) => {
            states.push("allocated");
            if !reserved_for_none {
                states.push("reserved");
            }
        }
    }
    states.join(",")
}

// --- defaults

fn default_claim(spec: &mut Map) {
    fn count(request: &mut Map) {
        pod_defaults::default_str(request, "allocationMode", "ExactCount");
        if request.str("allocationMode") == "ExactCount" {
            pod_defaults::default_int(request, "count", 1);
        }
    }
    pod_defaults::with(spec, "devices", |devices| {
        pod_defaults::each(devices, "requests", |request| {
            pod_defaults::with(request, "exactly", count);
            pod_defaults::each(request, "firstAvailable", count);
        });
    });
}

/// Behind gates that are off.
fn drop_disabled(slice: &mut Value) {
    pod_defaults::each(slice.make_map(&["spec"]), "devices", |device| {
        device.remove("nodeAllocatableResourceMappings");
    });
}

/// A taint knows since when.
fn note_taints(context: &Context, slice: &mut Value) {
    let now = context.now.to_string();
    pod_defaults::each(slice.make_map(&["spec"]), "devices", |device| {
        pod_defaults::each(device, "taints", |taint| taint.insert_default("timeAdded", now.as_str()));
    });
}

// --- pieces

/// At most `max` items; whether they may be looked at.
fn few(list: &At, max: usize) -> bool {
    if list.len() > max {
        list.too_many(max);
    }
    list.len() <= max
}

fn repeated<'a>(items: &[At<'a>], key: impl Fn(&At<'a>) -> String) {
    let mut seen: Vec<String> = Vec::new();
    for item in items {
        let key = key(item);
        if seen.contains(&key) {
            item.push(FieldError::duplicate(item.path, key.as_str()));
        } else {
            seen.push(key);
        }
    }
}

fn identifier(at: &At, id: &str) {
    const IDENTIFIER: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
        characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
    if id.len() > 32 {
        at.too_long(32);
    }
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    if !id.starts_with(first) || !id.chars().all(|c| first(c) || c.is_ascii_digit()) {
        at.invalid_as(id, IDENTIFIER);
    }
}

/// `domain/name` or `name`.
fn qualified(at: &At, name: &str) {
    match name.split('/').collect::<Vec<_>>()[..] {
        [id] => identifier(at, id),
        [domain, id] => {
            match domain {
                "" => at.invalid_as("", "the domain must not be empty"),
                _ => volumes::csi_driver_name(&at.over(Some(&Value::from(domain)))),
            }
            match id {
                "" => at.invalid_as("", "the name must not be empty"),
                _ => identifier(at, id),
            }
        }
        _ => {}
    }
}

fn fully_qualified(at: &At) {
    qualified(at, at.str());
    if !at.str().contains('/') {
        at.invalid("a fully qualified name must be a domain and a name separated by a slash");
    }
}

fn pool_name(at: &At) {
    if !at.must() {
        return;
    }
    if at.len() > 253 {
        at.too_long(253);
    }
    for part in at.str().split('/') {
        validation::subdomain(part).into_iter().for_each(|m| at.invalid_as(part, m));
    }
}

fn label_name(at: &At) {
    at.ok(validation::qualified_name);
}

fn share_id(at: &At) {
    if at.is_set() && !is_uuid(at.str()) {
        at.invalid("uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters");
    }
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<usize> = text.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && text.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Any JSON object, not too long.
fn raw_object(at: &At, max: usize) {
    match at.value {
        Value::Null => at.required(""),
        v if crate::api::json::to_vec(v).len() > max => at.too_long(max),
        Value::Map(_) => {}
        _ => at.invalid_as("<value omitted>", "must be a valid JSON object"),
    }
}

fn selectors(list: &At) {
    if !few(list, 32) {
        return;
    }
    for selector in list.each() {
        let cel = selector.get("cel");
        if !cel.is_set() {
            cel.required("");
        }
        let expression = cel.get("expression");
        if expression.len() > 10 * 1024 {
            expression.too_long(10 * 1024);
        }
    }
}

fn configuration(config: &At) {
    let opaque = config.get("opaque");
    if !opaque.is_set() {
        return opaque.required("");
    }
    volumes::csi_driver_name(&opaque.get("driver"));
    raw_object(&opaque.get("parameters"), 10 * 1024);
}

fn device_class(spec: &At) {
    selectors(&spec.get("selectors"));
    let configs = spec.get("config");
    if few(&configs, 32) {
        configs.each().iter().for_each(configuration);
    }
    let name = spec.get("extendedResourceName");
    if name.is_set() && !amounts::is_extended(name.str()) {
        name.invalid("must be a valid extended resource name");
    }
}

// --- claims

/// Names of requests, and of the alternatives within each.
fn request_names<'a>(devices: &At<'a>) -> Vec<(&'a str, Vec<&'a str>)> {
    let names = |r: &At<'a>| (r.get("name").str(), r.get("firstAvailable").each().iter().map(|s| s.get("name").str()).collect());
    devices.get("requests").each().iter().map(names).collect()
}

fn claim_spec(spec: &At) {
    let devices = spec.get("devices");
    let names = request_names(&devices);
    let (requests, constraints, configs) = (devices.get("requests"), devices.get("constraints"), devices.get("config"));
    if few(&requests, 32) {
        requests.each().iter().for_each(request);
        repeated(&requests.each(), |r| r.get("name").str().to_string());
    }
    if few(&constraints, 32) {
        for constraint in constraints.each() {
            request_references(&constraint.get("requests"), &names);
            let (matching, distinct) = (constraint.get("matchAttribute"), constraint.get("distinctAttribute"));
            match (matching.is_set(), distinct.is_set()) {
                (true, _) => fully_qualified(&matching),
                (false, true) => fully_qualified(&distinct),
                (false, false) => {
                    let why = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
                    constraint.required(why);
                }
            }
        }
    }
    if few(&configs, 32) {
        for config in configs.each() {
            request_references(&config.get("requests"), &names);
            configuration(&config);
        }
    }
}

fn request(request: &At) {
    request.get("name").ok(validation::label);
    let (exactly, first) = (request.get("exactly"), request.get("firstAvailable"));
    match (exactly.is_set(), !first.is_empty()) {
        (false, false) => request.required("exactly one of `exactly` or `firstAvailable` is required"),
        (true, true) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            request.push(FieldError::invalid(request.path, Value::Null, why));
        }
        (false, true) => {
            if few(&first, 8) {
                for sub in first.each() {
                    sub.get("name").ok(validation::label);
                    device_request(&sub);
                }
                repeated(&first.each(), |s| s.get("name").str().to_string());
            }
        }
        (true, false) => device_request(&exactly),
    }
}

fn device_request(at: &At) {
    at.get("deviceClassName").must_be(validation::subdomain);
    selectors(&at.get("selectors"));
    let (mode, count) = (at.get("allocationMode"), at.get("count"));
    match mode.str() {
        "All" if count.int() != 0 => count.invalid("must not be specified when allocationMode is 'All'"),
        "All" => {}
        "ExactCount" => count.positive(),
        _ => drop(mode.one_of(&["All", "ExactCount"])),
    }
    at.get("tolerations").each().iter().for_each(toleration);
}

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

fn toleration(at: &At) {
    let (operator, value) = (at.get("operator"), at.get("value"));
    at.get("key").may_be(validation::qualified_name);
    match operator.str() {
        "Exists" if !value.is_empty() => value.invalid("must be empty for operator `Exists`"),
        "Exists" => {}
        "Equal" => drop(value.ok(validation::label_value)),
        _ => operator.must_one_of(&["Equal", "Exists"]),
    }
    if !at.get("effect").is_empty() {
        at.get("effect").one_of(&EFFECTS);
    }
}

const REFERENCE: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

fn request_references(list: &At, names: &[(&str, Vec<&str>)]) {
    if few(list, 32) {
        list.each().iter().for_each(|at| request_reference(at, names));
        repeated(&list.each(), |r| r.str().to_string());
    }
}

fn request_reference(at: &At, names: &[(&str, Vec<&str>)]) {
    let segments: Vec<&str> = at.str().split('/').collect();
    if segments.len() > 2 {
        return at.invalid_as(at.str(), REFERENCE);
    }
    for segment in &segments {
        validation::label(segment).into_iter().for_each(|m| at.invalid_as(*segment, m));
    }
    let known = names.iter().find(|(name, _)| *name == segments[0]);
    let fine = known.is_some_and(|(_, subs)| segments.get(1).is_none_or(|sub| subs.contains(sub)));
    if !fine {
        at.invalid_as(at.str(), REFERENCE);
    }
}

/// What tells allocated devices apart.
fn device_id(at: &At) -> String {
    let part = |key: &'static str| at.get(key).str();
    [part("driver"), part("pool"), part("device"), part("shareID")].join("/")
}

fn claim_status(claim: &At, old: &At) {
    let (status, was) = (claim.get("status"), old.get("status"));
    let names = request_names(&claim.at(&["spec", "devices"]));
    let (reserved, allocation, devices) = (status.get("reservedFor"), status.get("allocation"), status.get("devices"));
    if few(&reserved, 256) {
        for consumer in reserved.each() {
            ["resource", "name", "uid"].iter().for_each(|key| {
                consumer.get(key).must();
            });
        }
        repeated(&reserved.each(), |c| c.get("uid").str().to_string());
    }
    let allocated: Vec<String> = allocation.at(&["devices", "results"]).each().iter().map(device_id).collect();
    for device in devices.each() {
        volumes::csi_driver_name(&device.get("driver"));
        pool_name(&device.get("pool"));
        device.get("device").ok(validation::label);
        share_id(&device.get("shareID"));
        if !allocated.contains(&device_id(&device)) {
            device.invalid_as(device_id(&device), "must be an allocated device in the claim");
        }
        if device.get("conditions").len() > 8 {
            device.get("conditions").too_many(8);
        }
        conditions(&device.get("conditions"));
        if device.get("data").is_set() {
            raw_object(&device.get("data"), 10 * 1024);
        }
        network_data(&device.get("networkData"));
    }
    repeated(&devices.each(), device_id);
    if !reserved.is_empty() {
        if !allocation.is_set() {
            reserved.forbidden("may not be specified when `allocated` is not set");
        } else if claim.at(&["metadata", "deletionTimestamp"]).is_set() {
            let before = was.get("reservedFor").value.as_list().unwrap_or(&[]);
            if reserved.value.as_list().unwrap_or(&[]).iter().any(|c| !before.contains(c)) {
                reserved.forbidden("new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set");
            }
        }
    }
    if allocation.is_set() && was.get("allocation").is_set() {
        return allocation.immutable(&was.get("allocation"));
    }
    if !allocation.is_set() {
        return;
    }
    let results = allocation.at(&["devices", "results"]);
    if few(&results, 32) {
        for result in results.each() {
            request_reference(&result.get("request"), &names);
            volumes::csi_driver_name(&result.get("driver"));
            pool_name(&result.get("pool"));
            result.get("device").ok(validation::label);
            binding_conditions(&result);
            share_id(&result.get("shareID"));
        }
    }
    let configs = allocation.at(&["devices", "config"]);
    if few(&configs, 64) {
        for config in configs.each() {
            config.get("source").must_one_of(&["FromClaim", "FromClass"]);
            request_references(&config.get("requests"), &names);
            configuration(&config);
        }
    }
    if allocation.get("nodeSelector").is_set() {
        volumes::node_selector(&allocation.get("nodeSelector"));
    }
}

fn network_data(data: &At) {
    for (key, max) in [("interfaceName", 256), ("hardwareAddress", 128)] {
        if data.get(key).len() > max {
            data.get(key).too_long(max);
        }
    }
    let ips = data.get("ips");
    if !few(&ips, 16) {
        return;
    }
    for ip in ips.each() {
        match validation::parse_cidr(ip.str()).map(|(address, length)| format!("{address}/{length}")) {
            None => ip.invalid("must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)"),
            Some(canonical) if canonical != ip.str() => ip.invalid(format!("must be in canonical form (\"{canonical}\")")),
            Some(_) => {}
        }
    }
    repeated(&ips.each(), |ip| ip.str().to_string());
}

fn binding_conditions(at: &At) {
    let (binding, failure) = (at.get("bindingConditions"), at.get("bindingFailureConditions"));
    for list in [&binding, &failure] {
        if few(list, 4) {
            list.each().iter().for_each(label_name);
        }
    }
    repeated(&binding.each(), |c| c.str().to_string());
    repeated(&failure.each(), |c| c.str().to_string());
    for condition in failure.each().iter().filter(|c| binding.strings().contains(&c.str())) {
        condition.invalid("bindingFailureConditions must not overlap with bindingConditions");
    }
    let need = |list: &At, why: &str| list.push(FieldError::invalid(list.path, Value::Null, why));
    match (binding.is_empty(), failure.is_empty()) {
        (true, false) => need(&binding, "bindingConditions are required to use bindingFailureConditions"),
        (false, true) => need(&failure, "bindingFailureConditions are required to use bindingConditions"),
        _ => {}
    }
}

// --- slices

/// The places a slice or device may be said to be at: how many are said.
fn places(at: &At, keys: &[&'static str], empty: &str) -> Vec<String> {
    let mut set = Vec::new();
    for key in keys {
        let place = at.get(key);
        if !place.is_set() {
            continue;
        }
        match *key {
            "nodeName" if place.is_empty() => place.invalid(empty),
            "nodeName" => {
                place.ok(validation::subdomain);
                set.push(format!("`{key}`"));
            }
            "nodeSelector" => {
                volumes::node_selector(&place);
                set.push(format!("`{key}`"));
            }
            _ if place.flag() => set.push(format!("`{key}`")),
            _ => place.invalid("must be either unset or set to true"),
        }
    }
    set
}

fn resource_slice(slice: &At, old: Option<&At>) {
    let spec = slice.get("spec");
    let was = old.map(|o| o.get("spec"));
    let pool = spec.get("pool");
    volumes::csi_driver_name(&spec.get("driver"));
    pool_name(&pool.get("name"));
    if pool.get("resourceSliceCount").int() <= 0 {
        pool.get("resourceSliceCount").invalid_as(pool.get("resourceSliceCount").int(), "must be greater than zero");
    }
    if pool.get("generation").int() < 0 {
        pool.get("generation").invalid("must be greater than or equal to zero");
    }
    if let Some(was) = &was {
        pool.get("name").immutable(&was.at(&["pool", "name"]));
        spec.get("driver").immutable(&was.get("driver"));
        spec.get("nodeName").immutable(&was.get("nodeName"));
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let set = places(
        &spec,
        &["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"],
        "must be either unset or set to a non-empty string",
    );
    let terms = spec.at(&["nodeSelector", "nodeSelectorTerms"]);
    if spec.get("nodeSelector").is_set() && terms.len() != 1 {
        terms.invalid("must have exactly one node selector term");
    }
    match set.len() {
        0 => spec.required(ONE),
        1 => {}
        _ => spec.invalid_as(format!("{{{}}}", set.join(", ")), format!("{ONE}, but multiple fields are set")),
    }
    let (devices, counters) = (spec.get("devices"), spec.get("sharedCounters"));
    if devices.is_set() && counters.is_set() {
        spec.invalid_as("", "only one of `sharedCounters` or `devices` is allowed");
    }
    let rich = |d: &At| {
        let lists = |a: &At| ["bools", "ints", "strings", "versions"].iter().any(|key| a.get(key).is_set());
        !d.get("taints").is_empty() || !d.get("consumesCounters").is_empty() || d.get("attributes").entries().iter().any(|(_, a)| lists(a))
    };
    let max = if devices.each().iter().any(rich) { 64 } else { 128 };
    if few(&devices, max) {
        let per_device = spec.get("perDeviceNodeSelection").flag();
        for device in devices.each() {
            let before =
                was.as_ref().and_then(|w| w.get("devices").each().into_iter().find(|d| d.get("name").str() == device.get("name").str()));
            self::device(&device, before.as_ref(), per_device);
        }
        repeated(&devices.each(), |d| d.get("name").str().to_string());
    }
    if few(&counters, 8) {
        for set in counters.each() {
            set.get("name").must_be(validation::label);
            counter_map(&set.get("counters"));
        }
        repeated(&counters.each(), |c| c.get("name").str().to_string());
    }
}

fn counter_map(counters: &At) {
    if counters.must() && few(counters, 32) {
        for (key, _) in counters.entries() {
            validation::label(key).into_iter().for_each(|m| counters.invalid_as(key, m));
        }
    }
}

fn device(device: &At, old: Option<&At>, per_device: bool) {
    device.get("name").ok(validation::label);
    let (attributes, capacity) = (device.get("attributes"), device.get("capacity"));
    let total = attributes.len() + capacity.len();
    if total > 32 {
        device.invalid_as(total as i64, "the total number of attributes and capacities must not exceed 32");
    }
    let values: usize = attributes.entries().iter().map(|(_, a)| LISTS.iter().map(|l| a.get(l).len()).sum::<usize>().max(1)).sum();
    if values > 48 {
        device.invalid_as(values as i64, "the total number of attribute values must not exceed 48");
    }
    for (key, attribute) in attributes.entries() {
        qualified(&attributes, key);
        self::attribute(&attribute);
    }
    let shared = device.get("allowMultipleAllocations").flag();
    for (key, amount) in capacity.entries() {
        qualified(&capacity, key);
        let policy = amount.get("requestPolicy");
        if policy.is_set() && !shared {
            policy.forbidden("allowMultipleAllocations must be true");
        } else if policy.is_set() {
            request_policy(&policy, &amount.get("value"));
        }
    }
    let taints = device.get("taints");
    if old.is_none_or(|o| !same(o.get("taints").value, taints.value)) && few(&taints, 16) {
        for taint in taints.each() {
            label_name(&taint.get("key"));
            taint.get("value").may_be(validation::label_value);
            taint.get("effect").must_one_of(&EFFECTS);
        }
    }
    let consumes = device.get("consumesCounters");
    if few(&consumes, 2) {
        for counter in consumes.each() {
            counter.get("counterSet").must_be(validation::label);
            counter_map(&counter.get("counters"));
        }
        repeated(&consumes.each(), |c| c.get("counterSet").str().to_string());
    }
    const PLACES: [&str; 3] = ["nodeName", "nodeSelector", "allNodes"];
    if per_device {
        const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true \
            in the ResourceSlice spec";
        let set = places(device, &PLACES, "must not be empty");
        match set.len() {
            0 => device.required(ONE),
            1 => {}
            _ => device.invalid_as(format!("{{{}}}", set.join(", ")), ONE),
        }
    } else if PLACES.iter().any(|key| device.get(key).is_set()) {
        let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the \
            ResourceSlice spec";
        device.push(FieldError::invalid(device.path, Value::Null, why));
    }
    binding_conditions(device);
}

const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

fn attribute(at: &At) {
    let mut count = 0;
    for key in ["bool", "int", "string", "version"] {
        let value = at.get(key);
        if value.is_set() {
            count += 1;
            attribute_text(&value, key);
        }
    }
    for (list, key) in LISTS.iter().zip(["bool", "int", "string", "version"]) {
        let values = at.get(list);
        if values.is_set() {
            count += 1;
            if values.is_empty() {
                values.invalid("must not be empty if specified");
            }
            values.each().iter().for_each(|v| attribute_text(v, key));
        }
    }
    match count {
        0 => at.invalid_as("", "exactly one value must be specified"),
        1 => {}
        _ => at.invalid("exactly one value must be specified"),
    }
}

fn attribute_text(at: &At, kind: &str) {
    if kind == "version" && !is_semver(at.str()) {
        at.invalid("must be a string compatible with semver.org spec 2.0.0");
    }
    if matches!(kind, "string" | "version") && at.len() > 64 {
        at.too_long(64);
    }
}

/// `1.2.3-rc.1+build`.
fn is_semver(text: &str) -> bool {
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let number = |s: &str| digits(s) && (s == "0" || !s.starts_with('0'));
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|p| p.split('.').all(|s| word(s) && (!digits(s) || number(s))))
        && build.is_none_or(|b| b.split('.').all(word))
}

fn request_policy(policy: &At, capacity: &At) {
    let (values, range, default) = (policy.get("validValues"), policy.get("validRange"), policy.get("default"));
    let zero = || Quantity::new(0);
    let most = capacity.quantity().unwrap_or_else(zero);
    if !values.is_empty() && range.is_set() {
        let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        return policy.forbidden(why);
    }
    if !values.is_empty() {
        let Some(wanted) = default.quantity() else { return default.required("required when validValues is defined") };
        let items = values.each();
        for pair in items.windows(2) {
            if pair[0].quantity() > pair[1].quantity() {
                pair[1].invalid("values must be sorted in ascending order");
            }
        }
        if few(&values, 10) {
            for option in &items {
                if option.quantity().is_some_and(|q| q > most) {
                    option.invalid(format!("option is larger than capacity value: {most}"));
                }
            }
            repeated(&items, |o| o.quantity().unwrap_or_else(zero).value().to_string());
        }
        if !items.iter().any(|o| o.quantity().is_some_and(|q| q == wanted)) {
            values.invalid_as(wanted.to_string(), "default value is not valid according to the requestPolicy");
        }
    } else if range.is_set() {
        let Some(wanted) = default.quantity() else { return default.required("required when validRange is defined") };
        request_range(&range, &wanted, &most);
    }
}

fn request_range(range: &At, wanted: &Quantity, most: &Quantity) {
    let (min_at, max_at, step_at) = (range.get("min"), range.get("max"), range.get("step"));
    let Some(min) = min_at.quantity() else { return min_at.required("required when validRange is defined") };
    if min > *most {
        min_at.invalid(format!("min is larger than capacity value: {most}"));
    }
    if *wanted < min {
        min_at.invalid_as(wanted.to_string(), format!("default is less than min: {min}"));
    }
    let max = max_at.quantity();
    if let Some(max) = &max {
        if min > *max {
            max_at.invalid_as(min.to_string(), format!("min is larger than max: {max}"));
        }
        if max > most {
            max_at.invalid(format!("max is larger than capacity value: {most}"));
        }
        if wanted > max {
            max_at.invalid_as(wanted.to_string(), format!("default is more than max: {max}"));
        }
    }
    let Some(step) = step_at.quantity() else { return };
    let one = min.add(&step);
    if one > *most {
        step_at.invalid(format!("one step {one} is larger than capacity value: {most}"));
    }
    for value in [Some(wanted.clone()), max].into_iter().flatten() {
        if step.value() != 0 && (value.value() - min.value()) % step.value() != 0 {
            step_at.invalid_as(value.to_string(), format!("value is not a multiple of a given step ({step}) from ({min})"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for good in ["1.2.3", "0.0.0-rc.1+build.5", "1.0.0-0a"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in ["1.2", "01.2.3", "1.2.3-01", "1.2.3+", "v1.2.3"] {
            assert!(!is_semver(bad), "{bad}");
        }
    }
}
