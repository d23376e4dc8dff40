//! The batch group: jobs and cron jobs.

use crate::api::resource;
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::cursor::{At, same};
use crate::server::kinds::core::{pod_defaults, print_selector};
use crate::server::kinds::plain::{Cell, Plain, integer, plain, string};
use crate::server::kinds::workload;
use crate::server::strategy::{Column, Context, Propagation, Selectable};
use crate::server::{table, validation};

pub fn rows() -> Vec<Plain> {
    vec![
        Plain {
            default: default_job,
            prepare: generate_selector,
            prepare_update: |_, new, _| pod_defaults::drop_disabled(new.make_map(&["spec", "template", "spec"])),
            rules: job,
            status_rules: job_status,
            warnings: |new, old| {
                let name = workload::name_warning(new).filter(|_| old.is_none());
                name.into_iter().chain(workload::template_warnings(new, old, &["spec", "template"])).collect()
            },
            selectable: const { &[Selectable { label: "status.successful", path: &["status", "succeeded"], absent: "0" }] },
            generation: true,
            propagation: Propagation::Orphan,
            ..plain(
                &resource::JOBS,
                const {
                    &[
                        Column::NAME,
                        string("Status"),
                        string("Completions"),
                        string("Duration"),
                        Column::AGE,
                        Column::wide("Containers", "string"),
                        Column::wide("Images", "string"),
                        Column::wide("Selector", "string"),
                    ]
                },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| print_status(o).into()),
                    Cell::Custom(|o, _| print_completions(o).into()),
                    Cell::Custom(|o, now| print_duration(o, now).into()),
                    Cell::Age,
                    Cell::Containers,
                    Cell::Images,
                    Cell::Selector,
                ],
            )
        },
        Plain {
            generation: true,
            default: default_cron_job,
            prepare: |_, o| drop_from_template(o),
            prepare_update: |_, new, _| drop_from_template(new),
            rules: cron_job,
            warnings: cron_job_warnings,
            ..plain(
                &resource::CRONJOBS,
                const {
                    &[
                        Column::NAME,
                        string("Schedule"),
                        string("Timezone"),
                        Column::new("Suspend", "boolean"),
                        integer("Active"),
                        string("Last Schedule"),
                        Column::AGE,
                        Column::wide("Containers", "string"),
                        Column::wide("Images", "string"),
                        Column::wide("Selector", "string"),
                    ]
                },
                &[
                    Cell::Name,
                    Cell::Text(&["spec", "schedule"]),
                    Cell::OrNone(&["spec", "timeZone"]),
                    Cell::Custom(|o, _| if o.bool_at(&["spec", "suspend"]) { "True".into() } else { "False".into() }),
                    Cell::Custom(|o, _| (o.list_at(&["status", "active"]).len() as i64).into()),
                    Cell::Custom(|o, now| match o.str_at(&["status", "lastScheduleTime"]) {
                        "" => "<none>".into(),
                        time => table::since(time, now).into(),
                    }),
                    Cell::Age,
                    Cell::Custom(|o, _| job_containers(o, "name").into()),
                    Cell::Custom(|o, _| job_containers(o, "image").into()),
                    Cell::Custom(|o, _| print_selector(o.at(&["spec", "jobTemplate", "spec", "selector"]).unwrap_or(&Value::Null)).into()),
                ],
            )
        },
    ]
}

fn job_containers(cron_job: &Value, key: &str) -> String {
    let all = cron_job.list_at(&["spec", "jobTemplate", "spec", "template", "spec", "containers"]);
    all.iter().map(|c| c.str_at(&[key])).collect::<Vec<_>>().join(",")
}

// --- what kubectl shows

fn is_condition(object: &Value, kind: &str, status: &str) -> bool {
    object.list_at(&["status", "conditions"]).iter().any(|c| c.str_at(&["type"]) == kind && c.str_at(&["status"]) == status)
}

fn has(job: &Value, condition: &str) -> bool {
    is_condition(job, condition, "True")
}

fn print_status(job: &Value) -> &'static str {
    let deleting = job.at(&["metadata", "deletionTimestamp"]).is_some();
    match () {
        () if has(job, "Complete") => "Complete",
        () if has(job, "Failed") => "Failed",
        () if deleting => "Terminating",
        () if has(job, "Suspended") => "Suspended",
        () if has(job, "FailureTarget") => "FailureTarget",
        () if has(job, "SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn print_completions(job: &Value) -> String {
    let succeeded = job.i64_at(&["status", "succeeded"]).unwrap_or(0);
    match (job.i64_at(&["spec", "completions"]), job.i64_at(&["spec", "parallelism"]).unwrap_or(0)) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, n) if n > 1 => format!("{succeeded}/1 of {n}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn print_duration(job: &Value, now: Time) -> String {
    let time = |key: &str| Time::parse(job.str_at(&["status", key])).ok();
    time("startTime").map_or_else(String::new, |start| table::duration(time("completionTime").unwrap_or(now).seconds - start.seconds))
}

// --- defaults

fn default_job(job: &mut Value) {
    let labels = job.at(&["spec", "template", "metadata", "labels"]).cloned();
    if let Some(labels) = labels.filter(|_| job.map_at(&["metadata", "labels"]).is_none_or(|l| l.is_empty())) {
        job.set(&["metadata", "labels"], labels);
    }
    let spec = job.make_map(&["spec"]);
    if spec.get("completions").is_none_or(Value::is_null) && spec.get("parallelism").is_none_or(Value::is_null) {
        spec.insert("completions", 1);
    }
    spec.insert_default("parallelism", 1);
    let per_index = spec.get("backoffLimitPerIndex").is_some_and(|v| !v.is_null());
    spec.insert_default("backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    spec.insert_default("completionMode", "NonIndexed");
    spec.insert_default("suspend", false);
    let failure_policy = spec.get("podFailurePolicy").is_some_and(|v| !v.is_null());
    spec.insert_default("podReplacementPolicy", if failure_policy { "Failed" } else { "TerminatingOrFailed" });
    spec.insert_default("manualSelector", false);
    default_job_parts(job.make_map(&["spec"]));
}

/// What job templates of cron jobs get, too.
fn default_job_parts(spec: &mut crate::api::value::Map) {
    if let Some(policy) = spec.get_mut("podFailurePolicy").and_then(Value::as_map_mut) {
        pod_defaults::each(policy, "rules", |rule| {
            pod_defaults::each(rule, "onPodConditions", |pattern| {
                if pattern.str("status").is_empty() {
                    pattern.insert("status", "True");
                }
            });
        });
    }
    pod_defaults::template(spec.slot("template"));
}

fn default_cron_job(object: &mut Value) {
    let spec = object.make_map(&["spec"]);
    if spec.str("concurrencyPolicy").is_empty() {
        spec.insert("concurrencyPolicy", "Allow");
    }
    spec.insert_default("suspend", false);
    spec.insert_default("successfulJobsHistoryLimit", 3);
    spec.insert_default("failedJobsHistoryLimit", 1);
    default_job_parts(spec.map_slot("jobTemplate").map_slot("spec"));
}

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";

/// A job's pods are told apart by its own UID.
fn drop_from_template(cron_job: &mut Value) {
    const AT: [&str; 5] = ["spec", "jobTemplate", "spec", "template", "spec"];
    if cron_job.at(&AT).is_some() {
        pod_defaults::drop_disabled(cron_job.make_map(&AT));
    }
}

fn generate_selector(_: &Context, job: &mut Value) {
    pod_defaults::drop_disabled(job.make_map(&["spec", "template", "spec"]));
    if job.bool_at(&["spec", "manualSelector"]) {
        return;
    }
    let (uid, name) = (job.str_at(&["metadata", "uid"]).to_string(), job.str_at(&["metadata", "name"]).to_string());
    // Labels that were defaulted from those of the template are the template's, in upstream's memory: what one gets both get.
    let own = job.at(&["metadata", "labels"]).filter(|l| l.as_map().is_some_and(|m| !m.is_empty()));
    let shared = own.is_some() && own == job.at(&["spec", "template", "metadata", "labels"]);
    let labels = job.make_map(&["spec", "template", "metadata", "labels"]);
    for (key, value) in [("job-name", &name), ("batch.kubernetes.io/job-name", &name), ("controller-uid", &uid), (CONTROLLER_UID, &uid)] {
        labels.insert_default(key, value.as_str());
    }
    if shared {
        let labels = labels.clone();
        job.set(&["metadata", "labels"], labels);
    }
    job.make_map(&["spec", "selector", "matchLabels"]).insert_default(CONTROLLER_UID, uid);
}

// --- rules

fn job(job: &At, old: Option<&At>) {
    let spec = job.get("spec");
    let name = job.at(&["metadata", "name"]);
    let check = || {
        generated_selector(job, old);
        job_spec_with_selector(&spec);
        let completions = spec.get("completions").int();
        if spec.get("completionMode").str() == "Indexed" && completions > 0 {
            let host = format!("{}-{}", name.str(), completions - 1);
            if !validation::label(&host).is_empty() {
                name.invalid(format!("will not able to create pod with invalid DNS label: {host}"));
            }
        }
    };
    check();
    if let Some(old) = old {
        // Upstream checks the new object once for itself and once as an update.
        job_spec_with_selector(&spec);
        job_update(&spec, &old.get("spec"), old);
    }
}

fn job_spec_with_selector(spec: &At) {
    job_spec(spec);
    let selector = spec.get("selector");
    if !selector.is_set() {
        selector.required("");
    }
    selector.label_selector();
    workload::selector_matches(&selector, &spec.get("template"));
}

fn generated_selector(job: &At, old: Option<&At>) {
    let spec = job.get("spec");
    if spec.get("manualSelector").flag() || !spec.get("selector").is_set() {
        return;
    }
    let (uid, name) = (job.at(&["metadata", "uid"]), job.at(&["metadata", "name"]));
    if uid.is_empty() {
        uid.required("");
    }
    let old_labels = old.map(|o| o.at(&["spec", "template", "metadata", "labels"]));
    let had = |key: &'static str| old_labels.as_ref().is_none_or(|l| l.get(key).is_set());
    let prefixed = had("batch.kubernetes.io/job-name") && had(CONTROLLER_UID);
    let mut wanted = vec![("controller-uid", uid.str()), ("job-name", name.str())];
    if prefixed {
        wanted.extend([(CONTROLLER_UID, uid.str()), ("batch.kubernetes.io/job-name", name.str())]);
    }
    let metadata = spec.at(&["template", "metadata"]);
    let labels = metadata.get("labels");
    let mut expected = crate::api::value::Map::new();
    for (key, value) in &wanted {
        let found = labels.value.get(key).and_then(Value::as_str);
        let at = labels.called(format!("{}[{key}]", labels.path));
        match found {
            None => at.required(format!("must be '{value}'")),
            Some(v) if v != *value => at.invalid(format!("must be '{value}'")),
            Some(_) => {}
        }
        expected.insert(*key, *value);
    }
    let selector = spec.get("selector");
    let fine = match workload::selects(&selector) {
        workload::Selects::Unreadable | workload::Selects::Everything => true,
        workload::Selects::Nothing => false,
        workload::Selects::Some => crate::server::kinds::core::matches_selector(selector.value, &expected),
    };
    if !fine {
        selector.invalid("`selector` not auto-generated");
    }
}

const INDEXES_MAX: i64 = 100_000;

fn job_spec(spec: &At) {
    let number = |key: &'static str| spec.get(key);
    workload::counts(
        spec,
        &[
            "parallelism",
            "completions",
            "activeDeadlineSeconds",
            "backoffLimit",
            "ttlSecondsAfterFinished",
            "backoffLimitPerIndex",
            "maxFailedIndexes",
        ],
    );
    let (parallelism, completions) = (number("parallelism"), number("completions"));
    let (per_index, max_failed) = (number("backoffLimitPerIndex"), number("maxFailedIndexes"));
    if max_failed.is_set() && !per_index.is_set() {
        per_index.required("when maxFailedIndexes is specified");
    }
    let managed_by = spec.get("managedBy");
    if managed_by.is_set() {
        managed_by.domain_prefixed_path();
        if managed_by.len() > 63 {
            managed_by.too_long(63);
        }
    }
    let mode = spec.get("completionMode");
    mode.maybe_one_of(&["NonIndexed", "Indexed"]);
    let indexed = mode.str() == "Indexed";
    if indexed {
        if !completions.is_set() {
            completions.required("when completion mode is Indexed");
        }
        if parallelism.int() > INDEXES_MAX {
            parallelism.invalid(format!("must be less than or equal to {INDEXES_MAX} when completion mode is Indexed"));
        }
        if completions.is_set() && max_failed.is_set() && max_failed.int() > completions.int() {
            max_failed.invalid("must be less than or equal to completions");
        }
        if max_failed.int() > INDEXES_MAX {
            max_failed.invalid(format!("must be less than or equal to {INDEXES_MAX}"));
        }
        if completions.int() > INDEXES_MAX && per_index.is_set() {
            const MANY: &str =
                "must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index";
            if !max_failed.is_set() {
                max_failed.required(format!("must be specified when completions is above {INDEXES_MAX}"));
            }
            for count in [&parallelism, &max_failed] {
                if count.int() > 10_000 {
                    count.invalid(MANY);
                }
            }
        }
    }
    if mode.str() == "NonIndexed" || !mode.is_set() {
        for count in [&per_index, &max_failed] {
            if count.is_set() {
                count.invalid("requires indexed completion mode");
            }
        }
    }
    let failure_policy = spec.get("podFailurePolicy");
    if failure_policy.is_set() {
        pod_failure_policy(spec, &failure_policy);
    }
    let success_policy = spec.get("successPolicy");
    if success_policy.is_set() {
        if indexed {
            success(&success_policy, completions.int());
        } else {
            success_policy.invalid("requires indexed completion mode");
        }
    }
    let replacement = spec.get("podReplacementPolicy");
    match failure_policy.is_set() {
        true => replacement.maybe_one_of(&["Failed"]),
        false => replacement.maybe_one_of(&["Failed", "TerminatingOrFailed"]),
    }
    workload::template(&spec.get("template"));
    let restart = spec.at(&["template", "spec", "restartPolicy"]);
    match restart.str() {
        "" | "Always" => restart.required("valid values: \"OnFailure\", \"Never\""),
        "Never" => {}
        "OnFailure" if failure_policy.is_set() => restart.invalid("only \"Never\" is supported when podFailurePolicy is specified"),
        "OnFailure" => {}
        _ => drop(restart.one_of(&["OnFailure", "Never"])),
    }
}

fn quoted(values: &[&str]) -> String {
    format!("[{}]", values.iter().map(|v| format!("\"{v}\"")).collect::<Vec<_>>().join(" "))
}

fn pod_failure_policy(spec: &At, policy: &At) {
    const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
    let rules = policy.get("rules");
    if rules.len() > 20 {
        rules.too_many(20);
    }
    let pod = spec.at(&["template", "spec"]);
    let names: Vec<&str> = ["containers", "initContainers"].iter().flat_map(|l| pod.get(l).each()).map(|c| c.get("name").str()).collect();
    for rule in rules.each() {
        let action = rule.get("action");
        match action.str() {
            "" => action.required(format!("valid values: {}", quoted(&ACTIONS))),
            "FailIndex" if !spec.get("backoffLimitPerIndex").is_set() => action.invalid("requires the backoffLimitPerIndex to be set"),
            _ => drop(action.one_of(&ACTIONS)),
        }
        let (codes, conditions) = (rule.get("onExitCodes"), rule.get("onPodConditions"));
        if codes.is_set() {
            exit_codes(&codes, &names);
        }
        if conditions.len() > 20 {
            conditions.too_many(20);
        }
        for pattern in conditions.each() {
            const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
            pattern.get("type").ok(validation::qualified_name);
            let status = pattern.get("status");
            if status.must_because(&format!("valid values: {}", quoted(&STATUSES))) {
                status.one_of(&STATUSES);
            }
        }
        match (codes.is_set(), !conditions.is_empty()) {
            (true, true) => rule.invalid_bare("specifying both OnExitCodes and OnPodConditions is not supported"),
            (false, false) => rule.invalid_bare("specifying one of OnExitCodes and OnPodConditions is required"),
            _ => {}
        }
    }
}

fn exit_codes(codes: &At, containers: &[&str]) {
    const OPERATORS: [&str; 2] = ["In", "NotIn"];
    let operator = codes.get("operator");
    if operator.must_because(&format!("valid values: {}", quoted(&OPERATORS))) {
        operator.one_of(&OPERATORS);
    }
    let container = codes.get("containerName");
    if container.is_set() && !containers.contains(&container.str()) {
        container.invalid("must be one of the container or initContainer names in the pod template");
    }
    let values = codes.get("values");
    if values.is_empty() {
        values.invalid("at least one value is required");
    } else if values.len() > 255 {
        values.too_many(255);
    }
    let items = values.each();
    for value in &items {
        if operator.str() == "In" && value.int() == 0 {
            value.invalid("must not be 0 for the In operator");
        }
    }
    values.unique(|v| v.int());
    if items.windows(2).any(|w| w[0].int() > w[1].int()) {
        values.invalid("must be ordered");
    }
}

fn success(policy: &At, completions: i64) {
    let rules = policy.get("rules");
    rules.must_because("at least one rules must be specified when the successPolicy is specified");
    if rules.len() > 20 {
        rules.too_many(20);
    }
    for rule in rules.each() {
        let (count, indexes) = (rule.get("succeededCount"), rule.get("succeededIndexes"));
        if !count.is_set() && !indexes.is_set() {
            rule.required("at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = 0;
        if indexes.is_set() {
            if indexes.len() > 64 * 1024 {
                indexes.too_long(64 * 1024);
            }
            match index_count(indexes.str(), completions) {
                Ok(n) => total = n,
                Err(why) => indexes.invalid(format!("error parsing succeededIndexes: {why}")),
            }
        }
        if count.is_set() {
            count.not_negative();
            if count.int() > completions {
                count.invalid(format!("must be less than or equal to {completions} (the number of specified completions)"));
            }
            if indexes.is_set() && count.int() > total {
                let words = "the number of indexes in the specified succeededIndexes field";
                count.invalid(format!("must be less than or equal to {total} ({words})"));
            }
        }
    }
}

/// How many indexes `1,3-5` names, all below `completions` and growing.
fn index_count(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut last) = (0, None);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (low, high) = index_interval(part, completions)?;
        if let Some(last) = last.filter(|last| *last >= low) {
            return Err(format!("non-increasing order, previous: {last}, current: {low}"));
        }
        total += high - low + 1;
        last = Some(high);
    }
    Ok(total)
}

fn index_interval(part: &str, completions: i64) -> Result<(i64, i64), String> {
    let limits: Vec<&str> = part.split('-').collect();
    let read = |text: &str| -> Result<i64, String> {
        let n: i64 = text.parse().map_err(|_| format!("cannot convert string to integer for index: \"{text}\""))?;
        if n >= completions { Err(format!("too large index: \"{text}\"")) } else { Ok(n) }
    };
    match limits[..] {
        [one] => read(one).map(|n| (n, n)),
        [low, high] => {
            let (low, high) = (read(low)?, read(high)?);
            if low >= high { Err(format!("non-increasing order, previous: {low}, current: {high}")) } else { Ok((low, high)) }
        }
        _ => Err(format!(
            "the fragment \"{part}\" violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
    }
}

fn job_update(spec: &At, old: &At, old_job: &At) {
    let (completions, parallelism) = (spec.get("completions"), spec.get("parallelism"));
    if spec.get("completionMode").str() != "Indexed" {
        completions.immutable(&old.get("completions"));
    } else if completions.is_set() && !same(completions.value, old.get("completions").value) && completions.int() != parallelism.int() {
        completions.invalid("can only be modified in tandem with spec.parallelism");
    }
    spec.get("selector").immutable(&old.get("selector"));
    job_template_update(spec, old, old_job);
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        spec.get(key).immutable(&old.get(key));
    }
}

/// The template may change in what decides where pods go, and what they get, while the job has not started.
fn job_template_update(spec: &At, old: &At, old_job: &At) {
    let template = spec.get("template");
    let mut was = old.get("template").value.clone();
    let suspended = old.get("suspend").flag();
    let paused = has(old_job.value, "Suspended") || !old_job.at(&["status", "startTime"]).is_set();
    let open = suspended && paused && old_job.at(&["status", "active"]).int() == 0;
    let copy = |was: &mut Value, path: &[&str]| match template.value.at(path) {
        Some(v) => was.set(path, v.clone()),
        None => drop(was.remove(path)),
    };
    if open {
        for path in [
            &["spec", "affinity", "nodeAffinity"][..],
            &["spec", "nodeSelector"],
            &["spec", "tolerations"],
            &["metadata", "annotations"],
            &["metadata", "labels"],
            &["spec", "schedulingGates"],
        ] {
            copy(&mut was, path);
        }
        if template.value.at(&["spec", "affinity"]).is_none() && was.map_at(&["spec", "affinity"]).is_some_and(|a| a.is_empty()) {
            was.remove(&["spec", "affinity"]);
        }
        for list in ["containers", "initContainers"] {
            let now = template.value.list_at(&["spec", list]);
            let Some(Value::List(before)) = was.at_mut(&["spec", list]) else { continue };
            for (before, now) in before.iter_mut().zip(now).filter(|(b, n)| b.str_at(&["name"]) == n.str_at(&["name"])) {
                before.set(&["resources"], now.get("resources").cloned().unwrap_or_default());
            }
        }
        let (new_spec, was_spec) = (template.get("spec"), was.get("spec").cloned().unwrap_or_default());
        if !same(new_spec.value, &was_spec) {
            new_spec.invalid(validation::IMMUTABLE);
        }
    } else if !same(template.value, &was) {
        template.invalid(validation::IMMUTABLE);
    }
}

fn job_status(job: &At, old: &At) {
    let (status, was, spec) = (job.get("status"), old.get("status"), job.get("spec"));
    workload::counts(&status, &["active", "succeeded", "failed", "ready", "terminating"]);
    let changed = |key: &'static str| !same(status.get(key).value, was.get(key).value);
    let now = |condition: &str| has(job.value, condition);
    let before = |condition: &str| has(old.value, condition);
    let moved = |condition: &str| now(condition) != before(condition);
    let (complete, failed) = (now("Complete"), now("Failed"));
    let (target, met) = (now("FailureTarget"), now("SuccessCriteriaMet"));
    let finished = complete || failed;
    let finished_moved = finished != (before("Complete") || before("Failed"));
    let conditions = status.get("conditions");
    let get = |key: &'static str| status.get(key);
    let uncounted = get("uncountedTerminatedPods");
    let mut seen: Vec<&str> = Vec::new();
    for pod in ["succeeded", "failed"].iter().flat_map(|list| uncounted.get(list).each()) {
        match pod.str() {
            "" => pod.invalid("must not be empty"),
            uid if seen.contains(&uid) => pod.duplicate(),
            uid => seen.push(uid),
        }
    }
    let completion_moved = moved("Complete") || changed("completionTime");
    let indexed = spec.get("completionMode").str() == "Indexed";
    let completions = spec.get("completions");
    let per_index = spec.get("backoffLimitPerIndex").is_set();
    let refuse = |when: bool, why: &str| {
        if when {
            conditions.invalid_bare(why);
        }
    };
    refuse((moved("Complete") || moved("Failed")) && complete && failed, "cannot set Complete=True and Failed=true conditions");
    refuse(
        (moved("Complete") || moved("FailureTarget")) && complete && target,
        "cannot set Complete=True and FailureTarget=true conditions",
    );
    let (start, completion) = (get("startTime"), get("completionTime"));
    if completion_moved && completion.is_set() && !complete {
        completion.invalid("cannot set completionTime when there is no Complete=True condition");
    }
    if completion_moved && !completion.is_set() && complete {
        completion.required("completionTime is required for Complete jobs");
    }
    let time = |at: &At| Time::parse(at.str()).ok();
    if (changed("startTime") || changed("completionTime"))
        && let (Some(s), Some(c)) = (time(&start), time(&completion))
        && c.seconds < s.seconds
    {
        completion.invalid("must be equal to or after `startTime`");
    }
    let why = "cannot set Failed=True condition without the FailureTarget=true condition";
    refuse((moved("Failed") || changed("failedIndexes")) && failed && !target, why);
    let why = "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
    refuse((moved("Complete") || moved("SuccessCriteriaMet")) && complete && !met, why);
    if (finished_moved || changed("active")) && get("active").int() > 0 && finished {
        get("active").invalid("active>0 is invalid for finished job");
    }
    let nothing_to_do = spec.get("suspend").flag() && completions.is_set() && completions.int() == 0;
    if (finished_moved || changed("startTime")) && !nothing_to_do && !start.is_set() && finished {
        start.required("startTime is required for finished job");
    }
    if (finished_moved || changed("uncountedTerminatedPods")) && finished && !seen.is_empty() {
        uncounted.invalid("must be empty for finished job");
    }
    let (done_indexes, failed_indexes) = (get("completedIndexes"), get("failedIndexes"));
    if changed("completedIndexes") {
        if completions.is_set()
            && let Err(why) = index_count(done_indexes.str(), completions.int())
        {
            done_indexes.invalid(format!("error parsing completedIndexes: {why}"));
        }
        if !done_indexes.is_empty() && !indexed {
            done_indexes.invalid("cannot set non-empty completedIndexes when non-indexed completion mode");
        }
    }
    if changed("failedIndexes") && failed_indexes.is_set() {
        if completions.is_set()
            && per_index
            && let Err(why) = index_count(failed_indexes.str(), completions.int())
        {
            failed_indexes.invalid(format!("error parsing failedIndexes: {why}"));
        }
        if !per_index {
            failed_indexes.invalid("cannot set non-null failedIndexes when backoffLimitPerIndex is null");
        }
    }
    if (changed("failedIndexes") || changed("completedIndexes"))
        && completions.is_set()
        && failed_indexes.is_set()
        && let Some(index) = overlap(done_indexes.str(), failed_indexes.str(), completions.int())
    {
        failed_indexes.invalid(format!("failedIndexes and completedIndexes overlap at index: {index}"));
    }
    if (finished_moved || changed("terminating")) && get("terminating").int() > 0 && finished {
        get("terminating").invalid("terminating>0 is invalid for finished job");
    }
    if (changed("ready") || changed("active")) && get("ready").int() > get("active").int() {
        get("ready").invalid("cannot set more ready pods than active");
    }
    refuse(met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    refuse(met && target, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    let why = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
    refuse(spec.get("successPolicy").is_set() && !met && complete, why);
    for terminal in ["Failed", "Complete", "FailureTarget"] {
        refuse(before(terminal) && !now(terminal), &format!("cannot disable the terminal {terminal}=True condition"));
    }
    let fewer = |key: &'static str| {
        if get(key).int() < was.get(key).int() {
            get(key).invalid_as(get(key).int(), format!("cannot decrease the {key} counter"));
        }
    };
    fewer("failed");
    if !indexed || !same(completions.value, spec.get("parallelism").value) {
        fewer("succeeded");
    }
    if completion.is_set() && was.get("completionTime").is_set() && changed("completionTime") {
        completion.invalid(validation::IMMUTABLE);
    }
    let resuming = before("Suspended") && is_condition(job.value, "Suspended", "False");
    if changed("startTime") && !resuming && was.get("startTime").is_set() && !spec.get("suspend").flag() {
        start.invalid("field is immutable for unsuspended job once set");
    }
    refuse(before("SuccessCriteriaMet") && !met, "cannot disable the SuccessCriteriaMet=True condition");
    let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
    refuse(before("Complete") && !before("SuccessCriteriaMet") && met, why);
}

/// The first index in both lists.
fn overlap(done: &str, failed: &str, completions: i64) -> Option<i64> {
    let intervals = |text: &str| -> Vec<(i64, i64)> { text.split(',').filter_map(|p| index_interval(p, completions).ok()).collect() };
    let failed = intervals(failed);
    intervals(done).into_iter().find_map(|(a, b)| failed.iter().find(|(x, y)| a <= *y && *x <= b).map(|(x, _)| a.max(*x)))
}

fn cron_job(cron_job: &At, old: Option<&At>) {
    let spec = cron_job.get("spec");
    let was = old.map(|o| o.get("spec"));
    let (schedule, zone) = (spec.get("schedule"), spec.get("timeZone"));
    if schedule.must() {
        if let Err(why) = parse_schedule(schedule.str()) {
            schedule.invalid(why);
        }
        let tolerated = was.as_ref().is_some_and(|w| w.get("schedule").str().contains("TZ"));
        if schedule.str().contains("TZ") {
            if tolerated && zone.is_set() {
                schedule.invalid("cannot use both timeZone field and TZ or CRON_TZ in schedule");
            } else if !tolerated {
                schedule.invalid("cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
            }
        }
    }
    spec.get("startingDeadlineSeconds").not_negative();
    if zone.is_set() && was.as_ref().is_none_or(|w| w.get("timeZone").value != zone.value) {
        time_zone(&zone);
    }
    spec.get("concurrencyPolicy").must_one_of(&["Allow", "Forbid", "Replace"]);
    let job = spec.at(&["jobTemplate", "spec"]);
    job_spec(&job);
    if job.get("selector").is_set() {
        job.get("selector").invalid("`selector` will be auto-generated");
    }
    if job.get("manualSelector").flag() {
        job.get("manualSelector").unsupported(&["nil", "false"]);
    }
    spec.get("successfulJobsHistoryLimit").not_negative();
    spec.get("failedJobsHistoryLimit").not_negative();
    let name = cron_job.at(&["metadata", "name"]);
    if old.is_none() && name.len() > 52 {
        name.invalid("must be no more than 52 characters");
    }
}

fn cron_job_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings: Vec<String> = workload::name_warning(new).filter(|_| old.is_none()).into_iter().collect();
    warnings.extend(workload::template_warnings(new, old, &["spec", "jobTemplate", "spec", "template"]));
    if old.is_some() && new.str_at(&["spec", "schedule"]).contains("TZ") {
        warnings.push(
            "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                .to_string(),
        );
    }
    warnings
}

/// The names of the IANA time zone database.
const ZONES: &str = include_str!("../../api/facts/zones.txt");

fn time_zone(zone: &At) {
    let name = zone.str();
    if name.is_empty() {
        return zone.invalid("timeZone must be nil or non-empty string");
    }
    let part = |p: &str| {
        let characters = p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+'));
        !(1..=14).contains(&p.len()) || !characters || p == "." || p == ".." || p.starts_with('-')
    };
    if name.split('/').any(part) {
        return zone.invalid(format!("unknown time zone {name}"));
    }
    if name.eq_ignore_ascii_case("local") {
        zone.invalid("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
    } else if !ZONES.lines().any(|zone| zone == name) {
        zone.invalid(format!("unknown time zone {name}"));
    }
}

/// Whether a cron schedule of five fields can be read, with the words of the parser upstream uses.
fn parse_schedule(schedule: &str) -> Result<(), String> {
    const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    if schedule.is_empty() {
        return Err("empty spec string".to_string());
    }
    let body = match schedule.strip_prefix("TZ=").or_else(|| schedule.strip_prefix("CRON_TZ=")) {
        Some(rest) => rest.split_once(' ').map_or("", |(_, body)| body.trim()),
        None => schedule,
    };
    if body.starts_with('@') {
        return descriptor(body);
    }
    let fields: Vec<&str> = body.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields[..] else {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    };
    schedule_field(minute, 0, 59, &[], 0)?;
    schedule_field(hour, 0, 23, &[], 0)?;
    schedule_field(day, 1, 31, &[], 0)?;
    schedule_field(month, 1, 12, &MONTHS, 1)?;
    schedule_field(weekday, 0, 6, &DAYS, 0)
}

fn descriptor(text: &str) -> Result<(), String> {
    const KNOWN: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if KNOWN.contains(&text) {
        return Ok(());
    }
    match text.strip_prefix("@every ") {
        Some(duration) => {
            let why = |e| format!("failed to parse duration {text}: {e}");
            validation::go_duration(duration).map(drop).map_err(why)
        }
        None => Err(format!("unrecognized descriptor: {text}")),
    }
}

fn schedule_field(field: &str, min: i64, max: i64, names: &[&str], first: i64) -> Result<(), String> {
    let number = |text: &str| -> Result<i64, String> {
        if let Some(i) = names.iter().position(|n| n.eq_ignore_ascii_case(text)) {
            return Ok(i as i64 + first);
        }
        schedule_number(text)
    };
    for expression in field.split(',').filter(|e| !e.is_empty()) {
        let parts: Vec<&str> = expression.split('/').collect();
        let bounds: Vec<&str> = parts[0].split('-').collect();
        let (start, mut end) = match bounds[..] {
            ["*" | "?"] => (min, max),
            [one] => number(one).map(|n| (n, n))?,
            ["*" | "?", _] => (min, max),
            [low, high] => (number(low)?, number(high)?),
            _ => return Err(format!("too many hyphens: {expression}")),
        };
        let step = match parts[..] {
            [_] => 1,
            [_, step] => {
                if bounds.len() == 1 {
                    end = max;
                }
                schedule_number(step)?
            }
            _ => return Err(format!("too many slashes: {expression}")),
        };
        match () {
            () if start < min => return Err(format!("beginning of range ({start}) below minimum ({min}): {expression}")),
            () if end > max => return Err(format!("end of range ({end}) above maximum ({max}): {expression}")),
            () if start > end => return Err(format!("beginning of range ({start}) beyond end of range ({end}): {expression}")),
            () if step == 0 => return Err(format!("step of range should be a positive number: {expression}")),
            () => {}
        }
    }
    Ok(())
}

fn schedule_number(text: &str) -> Result<i64, String> {
    match validation::go_atoi(text) {
        Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {text}")),
        Ok(n) => Ok(n),
        Err(why) => Err(format!("failed to parse int from {text}: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["*/5 * * * *", "0 0 1 jan sun", "@hourly", "@every 1h30m", "1-5,7 * ? * *", "TZ=UTC 0 0 * * *"] {
            assert_eq!(parse_schedule(good), Ok(()), "{good}");
        }
        let bad = [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("@never", "unrecognized descriptor: @never"),
        ];
        for (schedule, why) in bad {
            assert_eq!(parse_schedule(schedule), Err(why.to_string()));
        }
    }

    #[test]
    fn indexes() {
        assert_eq!(index_count("0,2-4", 5), Ok(4));
        assert_eq!(index_count("", 5), Ok(0));
        assert_eq!(index_count("3,1", 5), Err("non-increasing order, previous: 3, current: 1".to_string()));
        assert_eq!(index_count("5", 5), Err("too large index: \"5\"".to_string()));
        assert_eq!(overlap("0-3", "2,7", 10), Some(2));
    }
}
