//! Where data lives: what makes a volume source valid, in pods and in persistent volumes, and persistent volumes themselves.

use crate::api::resource;
use crate::api::schema;
use crate::api::status::FieldError;
use crate::api::value::Value;
use crate::server::cursor::{At, same};
use crate::server::kinds::core::{pod_defaults, pod_env, pod_spec};
use crate::server::kinds::plain::{Cell, Plain, plain, string};
use crate::server::strategy::Column;
use crate::server::validation;

pub fn rows() -> Vec<Plain> {
    vec![Plain {
        returns_deleted: true,
        default: default_volume,
        prepare: |context, o| {
            let now = context.now.to_string();
            o.set(&["status", "phase"], "Pending");
            o.set(&["status", "lastPhaseTransitionTime"], now);
        },
        prepare_status: note_phase,
        rules: |new, old| {
            let name = new.at(&["metadata", "name"]);
            spec(&new.get("spec"), name.str(), false, old.map(|o| o.get("spec")).as_ref());
            if let Some(old) = old {
                // As a volume, and as a changed one.
                spec(&new.get("spec"), name.str(), false, Some(&old.get("spec")));
                update(&new.get("spec"), &old.get("spec"));
            }
        },
        status_rules: |_, _| {},
        warnings: |new, _| volume_warnings(new),
        ..plain(
            &resource::PERSISTENTVOLUMES,
            const {
                &[
                    Column::NAME,
                    string("Capacity"),
                    string("Access Modes"),
                    string("Reclaim Policy"),
                    string("Status"),
                    string("Claim"),
                    string("StorageClass"),
                    string("VolumeAttributesClass"),
                    string("Reason"),
                    Column::AGE,
                    Column::wide("VolumeMode", "string"),
                ]
            },
            &[
                Cell::Name,
                Cell::Text(&["spec", "capacity", "storage"]),
                Cell::Custom(|o, _| print_modes(o.list_at(&["spec", "accessModes"])).into()),
                Cell::Text(&["spec", "persistentVolumeReclaimPolicy"]),
                Cell::Custom(|o, _| {
                    let deleting = o.at(&["metadata", "deletionTimestamp"]).is_some();
                    if deleting { "Terminating".into() } else { o.str_at(&["status", "phase"]).into() }
                }),
                Cell::Custom(|o, _| match o.at(&["spec", "claimRef"]) {
                    None => "".into(),
                    Some(claim) => format!("{}/{}", claim.str_at(&["namespace"]), claim.str_at(&["name"])).into(),
                }),
                Cell::Custom(|o, _| print_class(o).into()),
                Cell::Custom(|o, _| or_unset(o.str_at(&["spec", "volumeAttributesClassName"]))),
                Cell::Text(&["status", "reason"]),
                Cell::Age,
                Cell::Custom(|o, _| or_unset(o.str_at(&["spec", "volumeMode"]))),
            ],
        )
    }]
}

pub fn or_unset(text: &str) -> Value {
    if text.is_empty() { "<unset>".into() } else { text.into() }
}

/// The class by annotation, as it once was, or by field.
pub fn print_class(object: &Value) -> String {
    let annotated = object.str_at(&["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]);
    let class = object.str_at(&["spec", "storageClassName"]);
    if annotated.is_empty() { class.to_string() } else { annotated.to_string() }
}

/// `RWO,ROX`.
pub fn print_modes(modes: &[Value]) -> String {
    const SHORT: [(&str, &str); 4] =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |name: &str| modes.iter().any(|m| m.as_str() == Some(name));
    SHORT.iter().filter(|(name, _)| has(name)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

// --- persistent volumes

fn default_volume(object: &mut Value) {
    let status = object.make_map(&["status"]);
    pod_defaults::default_str(status, "phase", "Pending");
    let spec = object.make_map(&["spec"]);
    pod_defaults::default_str(spec, "persistentVolumeReclaimPolicy", "Retain");
    spec.insert_default("volumeMode", "Filesystem");
    pod_defaults::volume_sources(spec);
}

fn note_phase(context: &crate::server::strategy::Context, new: &mut Value, old: &Value) {
    const TIME: [&str; 2] = ["status", "lastPhaseTransitionTime"];
    let same_phase = new.str_at(&["status", "phase"]) == old.str_at(&["status", "phase"]);
    let (time, before) = (new.at(&TIME).cloned(), old.at(&TIME).cloned());
    if same_phase && time.is_none() {
        if let Some(before) = before {
            new.set(&TIME, before);
        }
    } else if !same_phase && (time.is_none() || time == before) {
        new.set(&TIME, context.now.to_string());
    }
}

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Every mode is known, and the one for a single pod stands alone.
pub fn access_modes(modes: &At) {
    let mut seen = (false, false);
    for mode in modes.each() {
        let known = mode.as_at(modes.path).one_of(&ACCESS_MODES);
        match mode.str() {
            "ReadWriteOncePod" => seen.0 = true,
            _ if known => seen.1 = true,
            _ => {}
        }
    }
    if seen == (true, true) {
        modes.forbidden("may not use ReadWriteOncePod with other access modes");
    }
}

/// `spec` of a persistent volume, or one written into a volume attachment.
pub fn spec(spec: &At, name: &str, inline: bool, old: Option<&At>) {
    let get = |key: &'static str| spec.get(key);
    let (capacity, reclaim) = (get("capacity"), get("persistentVolumeReclaimPolicy"));
    const INLINE: &str = "may not be specified in the context of inline volumes";
    if inline {
        if get("claimRef").is_set() {
            get("claimRef").forbidden(INLINE);
        }
        if !capacity.is_empty() {
            capacity.forbidden(INLINE);
        }
        if !get("csi").is_set() {
            get("csi").required("has to be specified in the context of inline volumes");
        }
    }
    get("accessModes").must();
    access_modes(&get("accessModes"));
    if !inline {
        capacity.must();
        if !capacity.get("storage").is_set() || capacity.len() > 1 {
            capacity.unsupported(&["storage"]);
        }
        for (_, amount) in capacity.entries() {
            let Some(q) = amount.quantity() else { continue };
            if q.value() < 0 {
                amount.invalid_as(q.value() as i64, "must be a valid resource quantity");
            }
            if q.sign() <= 0 {
                amount.invalid("must be greater than zero");
            }
        }
    }
    if !reclaim.is_empty() {
        match inline {
            true if reclaim.str() != "Retain" => reclaim.forbidden("may only be Retain in the context of inline volumes"),
            true => {}
            false => drop(reclaim.one_of(&["Delete", "Recycle", "Retain"])),
        }
    }
    let affinity = get("nodeAffinity");
    if affinity.is_set() {
        if inline {
            affinity.forbidden(INLINE);
        } else if affinity.get("required").is_set() {
            let tolerated = old.is_some_and(|o| same(o.get("nodeAffinity").value, affinity.value));
            if !tolerated {
                node_selector(&affinity.get("required"));
            }
        } else {
            affinity.get("required").required("must specify required node constraints");
        }
    }
    if volume_sources(spec, &PERSISTENT_SOURCES, Some(name)) == 0 {
        spec.required("must specify a volume type");
    }
    if get("local").is_set() && !affinity.is_set() {
        affinity.required("Local volume requires node affinity");
    }
    let path = get("hostPath").get("path");
    if reclaim.str() == "Recycle"
        && get("hostPath").is_set()
        && path.str().split('/').all(|p| matches!(p, "" | "."))
        && path.str().starts_with('/')
    {
        reclaim.forbidden("may not be 'recycle' for a hostPath mount of '/'");
    }
    let class = get("storageClassName");
    if !class.is_empty() {
        if inline {
            class.forbidden(INLINE);
        } else {
            class.ok(validation::subdomain);
        }
    }
    let mode = get("volumeMode");
    match inline {
        true if mode.is_set() && mode.str() != "Filesystem" => {
            mode.forbidden("may not specify volumeMode other than Filesystem in the context of inline volumes");
        }
        true => {}
        false => mode.maybe_one_of(&["Block", "Filesystem"]),
    }
    let attributes = get("volumeAttributesClassName");
    if attributes.is_set() && (!inline) {
        if attributes.is_empty() {
            attributes.required("an empty string is disallowed");
        } else {
            attributes.ok(validation::subdomain);
        }
        if !get("csi").is_set() {
            get("csi").required("has to be specified when using volumeAttributesClassName");
        }
    }
}

fn update(spec: &At, old: &At) {
    let sources = |at: &At| -> Value {
        let mut value = Value::map();
        for name in PERSISTENT_SOURCES {
            if let Some(source) = at.value.at(&[name]) {
                value.set(&[name], source.clone());
            }
        }
        value
    };
    let (mut new, was) = (sources(spec), sources(old));
    const EXPAND: [&str; 2] = ["csi", "controllerExpandSecretRef"];
    if was.at(&["csi"]).is_some() && was.at(&EXPAND).is_none() {
        new.remove(&EXPAND);
    }
    if !same(&new, &was) {
        let ty = schema::type_named("io.k8s.api.core.v1.PersistentVolumeSpec").expect("named from the table");
        let why = schema::diff(ty, &was, &new, Some(&PERSISTENT_SOURCES));
        let source = spec.called("spec.persistentvolumesource");
        source.forbidden(format!("spec.persistentvolumesource is immutable after creation\n{why}"));
    }
    spec.get("volumeMode").called("volumeMode").immutable(&old.get("volumeMode"));
    let (affinity, before) = (spec.get("nodeAffinity"), old.get("nodeAffinity"));
    if before.is_set() && !same(&renamed_labels(affinity.value), &renamed_labels(before.value)) {
        affinity.called("nodeAffinity").invalid("field is immutable, except for updating from beta label to GA");
    }
    let (class, before) = (spec.get("volumeAttributesClassName"), old.get("volumeAttributesClassName"));
    if before.is_set() && !class.is_set() {
        class.forbidden("update from non-nil value to nil is forbidden");
    }
}

/// Node labels were renamed on their way out of beta; either name is the same place.
fn renamed_labels(affinity: &Value) -> Value {
    const RENAMED: [(&str, &str); 5] = [
        ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
        ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
        ("beta.kubernetes.io/os", "kubernetes.io/os"),
        ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
        ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ];
    let mut affinity = affinity.clone();
    let terms = affinity.at_mut(&["required", "nodeSelectorTerms"]).and_then(Value::as_list_mut);
    for requirement in terms.into_iter().flatten().filter_map(|t| t.get_mut("matchExpressions")?.as_list_mut()).flatten() {
        if let Some((_, new)) = RENAMED.iter().find(|(old, _)| *old == requirement.str_at(&["key"])) {
            requirement.set(&["key"], *new);
        }
    }
    affinity
}

/// A `v1.NodeSelector`.
pub fn node_selector(selector: &At) {
    let terms = selector.get("nodeSelectorTerms");
    if !terms.must_because("must have at least one node selector term") {
        return;
    }
    for term in terms.each() {
        term.with(|errors, at| pod_spec::node_selector_term(errors, at, term.value, true));
    }
}

pub fn topology_term(term: &At) {
    let mut keys: Vec<&str> = Vec::new();
    for expression in term.get("matchLabelExpressions").each() {
        let (key, values) = (expression.get("key"), expression.get("values"));
        values.must();
        values.unique(|v| v.str());
        key.ok(validation::qualified_name);
        if keys.contains(&key.str()) {
            key.duplicate();
        }
        keys.push(key.str());
    }
}

// --- sources

/// In the order upstream looks for them: of several, the first is checked and the others are refused.
const PERSISTENT_SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// The same for pods.
pub const POD_SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// Checks what is there of `sources`; how many there are. `name` is the persistent volume's; none for pods.
pub fn volume_sources(holder: &At, sources: &[&'static str], name: Option<&str>) -> usize {
    let mut count = 0;
    for source in sources {
        let at = holder.get(source);
        if !at.is_set() {
            continue;
        }
        count += 1;
        if count > 1 {
            // Two of upstream's paths are misspelt.
            let called = match *source {
                "cephfs" => "cephFS",
                "downwardAPI" => "downwarAPI",
                other => other,
            };
            at.called(format!("{}.{called}", holder.path)).forbidden("may not specify more than 1 volume type");
            continue;
        }
        self::source(source, &at, holder, name);
    }
    count
}

fn source(source: &str, at: &At, holder: &At, name: Option<&str>) {
    let persistent = name.is_some();
    let need = |keys: &[&'static str]| {
        keys.iter().for_each(|key| {
            at.get(key).must();
        })
    };
    // A secret in another namespace must say which.
    let secret = |key: &'static str| {
        let reference = at.get(key);
        if reference.is_set() {
            reference.get("name").must();
            if persistent {
                reference.get("namespace").must();
            }
        }
    };
    match source {
        "emptyDir" => {
            let limit = at.get("sizeLimit");
            if limit.quantity().is_some_and(|q| q.sign() < 0) {
                limit.forbidden("SizeLimit field must be a valid resource quantity");
            }
        }
        "hostPath" => {
            let path = at.get("path");
            if path.must() {
                no_backsteps(&path);
                let known = ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
                at.get("type").maybe_one_of(&known);
            }
        }
        "gitRepo" => {
            need(&["repository"]);
            descending(&at.get("directory"));
        }
        "gcePersistentDisk" => {
            // Upstream's path for it differs from the field.
            let disk = at.called(format!("{}.persistentDisk", holder.path));
            disk.get("pdName").must();
            partition(&disk);
        }
        "awsElasticBlockStore" => {
            need(&["volumeID"]);
            partition(at);
        }
        "secret" | "configMap" => {
            need(&[if source == "secret" { "secretName" } else { "name" }]);
            mode(&at.get("defaultMode"));
            at.get("items").each().iter().for_each(key_to_path);
        }
        "nfs" => {
            need(&["server", "path"]);
            if !at.get("path").str().starts_with('/') {
                at.get("path").invalid_as(at.get("path").str(), "must be an absolute path");
            }
        }
        "iscsi" => iscsi(at, holder, name),
        "glusterfs" => {
            need(&["endpoints", "path"]);
            let namespace = at.get("endpointsNamespace");
            if namespace.is_set() {
                match namespace.is_empty() {
                    true => namespace.invalid("if the endpointnamespace is set, it must be a valid namespace name"),
                    false => drop(namespace.ok(validation::label)),
                }
            }
        }
        "flocker" => {
            let (dataset, uuid) = (at.get("datasetName"), at.get("datasetUUID"));
            match (dataset.is_empty(), uuid.is_empty()) {
                (true, true) => at.required("one of datasetName and datasetUUID is required"),
                (false, false) => at.invalid_as("resource", "datasetName and datasetUUID can not be specified simultaneously"),
                _ => {}
            }
            if dataset.str().contains('/') {
                dataset.invalid("must not contain '/'");
            }
        }
        "persistentVolumeClaim" => need(&["claimName"]),
        "rbd" => need(&["monitors", "image"]),
        "cinder" => {
            need(&["volumeID"]);
            secret("secretRef");
        }
        "cephfs" => need(&["monitors"]),
        "quobyte" => quobyte(at),
        "downwardAPI" => {
            mode(&at.get("defaultMode"));
            downward_files(at, &at.get("items"));
        }
        "fc" => fc(at),
        "flexVolume" => {
            need(&["driver"]);
            for (key, _) in at.get("options").entries() {
                let namespace = format!(".{}", key.split('/').next().unwrap_or("").to_lowercase());
                if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
                    let field = format!("{}.options[{key}]", at.path);
                    at.push(FieldError::invalid(field, key, "kubernetes.io and k8s.io namespaces are reserved"));
                }
            }
        }
        "azureFile" => {
            need(&["secretName", "shareName"]);
            if at.get("secretNamespace").is_set() {
                at.get("secretNamespace").must();
            }
        }
        "vsphereVolume" => need(&["volumePath"]),
        "photonPersistentDisk" => need(&["pdID"]),
        "portworxVolume" => need(&["volumeID"]),
        "azureDisk" => azure_disk(at),
        "storageos" => {
            at.get("volumeName").must_be(validation::label);
            at.get("volumeNamespace").may_be(validation::label);
            secret("secretRef");
        }
        "projected" => {
            mode(&at.get("defaultMode"));
            projected(at);
        }
        "scaleIO" => need(&["gateway", "system", "volumeName"]),
        "local" => {
            let path = at.get("path");
            if path.must() {
                no_backsteps(&path);
            }
        }
        "csi" => csi(at, persistent),
        "ephemeral" => {
            let template = at.get("volumeClaimTemplate");
            if !template.is_set() {
                return template.required("");
            }
            claim_template(&template);
        }
        "image" => {
            let reference = at.get("reference");
            // A template may leave the image to whoever makes pods of it.
            if !at.path.to_string().contains(".template.") {
                reference.must();
            }
            let policy = at.get("pullPolicy");
            if policy.must() {
                policy.one_of(&["Always", "IfNotPresent", "Never"]);
            }
        }
        _ => {}
    }
}

fn claim_template(template: &At) {
    template_metadata(&template.get("metadata"));
    super::claims::spec(&template.get("spec"), None);
}

/// Metadata of a template that becomes an object of its own: labels and annotations, nothing else.
pub fn template_metadata(metadata: &At) {
    let annotations = metadata.get("annotations");
    annotations.with(|errors, at| validation::annotations(errors, at, Some(annotations.value)));
    metadata.get("labels").labels();
    for (key, _) in metadata.value.as_map().into_iter().flat_map(|m| m.iter()).filter(|(_, v)| !v.is_null()) {
        if !matches!(key, "annotations" | "labels") && !metadata.member(key).is_empty() {
            metadata.member(key).called(format_args!("{}.{}", metadata.path, capital(key))).forbidden("cannot be set");
        }
    }
}

fn capital(key: &str) -> String {
    key[..1].to_uppercase() + &key[1..]
}

fn no_backsteps(path: &At) {
    if path.str().split('/').any(|part| part == "..") {
        path.invalid("must not contain '..'");
    }
}

fn descending(path: &At) {
    if path.str().starts_with('/') {
        path.invalid("must be a relative path");
    }
    no_backsteps(path);
}

/// A path below a volume's root, outside the names its updates use.
fn unreserved(path: &At) {
    descending(path);
    if path.str().starts_with("..") && !path.str().starts_with("../") {
        path.invalid("must not start with '..'");
    }
}

fn mode(at: &At) {
    if !(0..=0o777).contains(&at.int()) {
        at.invalid("must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn partition(disk: &At) {
    let at = disk.get("partition");
    if !(0..=255).contains(&at.int()) {
        at.invalid("must be between 1 and 255, inclusive");
    }
}

fn key_to_path(item: &At) {
    item.get("key").must();
    item.get("path").must();
    unreserved(&item.get("path"));
    mode(&item.get("mode"));
}

/// Complaints about the items name the list they are in (`called`), not the item.
fn downward_files(called: &At, items: &At) {
    for item in items.each() {
        let item = item.as_at(called.path);
        item.get("path").must();
        unreserved(&item.get("path"));
        let (field, amount) = (item.get("fieldRef"), item.get("resourceFieldRef"));
        if field.is_set() {
            pod_env::field_ref(&field, &pod_env::VOLUME_FIELDS);
            if amount.is_set() {
                item.invalid_as("resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
            }
        } else if amount.is_set() {
            pod_env::resource_field_ref(&amount, true);
        } else {
            item.required("one of fieldRef and resourceFieldRef is required");
        }
        mode(&item.get("mode"));
    }
}

fn projected(volume: &At) {
    const TWICE: &str = "conflicting duplicate paths";
    let mut paths: Vec<String> = Vec::new();
    let mut claim = |path: &str, shown: &str| {
        if path.is_empty() {
            return;
        }
        match paths.iter().any(|p| p == path) {
            true => volume.invalid_as(shown, TWICE),
            false => paths.push(path.to_string()),
        }
    };
    for source in volume.get("sources").each() {
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let at = source.get(kind);
            if !at.is_set() {
                continue;
            }
            count += 1;
            at.get("name").must();
            for item in at.get("items").each() {
                key_to_path(&item);
                claim(item.get("path").str(), at.get("name").str());
            }
        }
        let downward = source.get("downwardAPI");
        if downward.is_set() {
            count += 1;
            downward_files(&downward, &downward.get("items"));
            downward.get("items").each().iter().map(|i| i.get("path").str()).for_each(|p| claim(p, p));
        }
        let token = source.get("serviceAccountToken");
        if token.is_set() {
            count += 1;
            let seconds = token.get("expirationSeconds");
            if seconds.int() < 600 {
                seconds.invalid_as(seconds.int(), "may not specify a duration less than 10 minutes");
            }
            if seconds.int() > 1 << 32 {
                seconds.invalid("may not specify a duration larger than 2^32 seconds");
            }
            let path = token.get("path").as_at(volume.path.key("path"));
            if path.must() {
                unreserved(&path);
            }
        }
        let bundle = source.get("clusterTrustBundle");
        if bundle.is_set() {
            count += 1;
            trust_bundle(&bundle);
            let path = bundle.get("path");
            claim(path.str(), path.str());
        }
        let certificate = source.get("podCertificate");
        if certificate.is_set() {
            count += 1;
            pod_certificate(&certificate);
            for key in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
                let path = certificate.get(key);
                claim(path.str(), path.str());
            }
        }
        if count > 1 {
            source.forbidden("may not specify more than 1 volume type per source");
        }
    }
}

fn trust_bundle(bundle: &At) {
    let (name, signer, selector) = (bundle.get("name"), bundle.get("signerName"), bundle.get("labelSelector"));
    match (name.is_set(), signer.is_set()) {
        (true, true) => bundle.invalid("only one of name and signerName may be used"),
        (true, false) => {
            name.must_because("must be a valid object name");
            let last = name.str().rsplit(':').next().unwrap_or("");
            for message in validation::subdomain(last) {
                name.invalid(format!("not a valid clustertrustbundlename: {message}"));
            }
            if selector.is_set() {
                selector.invalid("labelSelector must be unset if name is specified");
            }
        }
        (false, true) => {
            signer.must_because("must be a valid signer name");
            signer_name(&signer);
            selector.label_selector();
        }
        (false, false) => bundle.required("either name or signerName must be specified"),
    }
    bundle.get("path").must();
    unreserved(&bundle.get("path"));
}

/// `example.com/name`, with upstream's limits on its parts.
pub fn signer_name(at: &At) {
    const DOMAIN_MAX: usize = 253;
    const PATH_MAX: usize = 571;
    if !at.must() {
        return;
    }
    let Some((domain, path)) = at.str().split_once('/') else {
        return at.invalid("must be a fully qualified domain and path of the form 'example.com/signer-name'");
    };
    for message in validation::subdomain(domain) {
        at.invalid_as(domain, format!("validating label \"{domain}\": {message}"));
    }
    if domain.split('.').count() < 2 {
        at.invalid_as(domain, "should be a domain with at least two segments separated by dots");
    }
    if path.is_empty() {
        at.invalid_as(path, "validating label \"\": a lowercase RFC 1123 subdomain must not be empty");
    }
    for segment in path.split('.') {
        for message in validation::subdomain(segment) {
            at.invalid_as(path, format!("validating label \"{segment}\": {message}"));
        }
    }
    if at.len() > DOMAIN_MAX + 1 + PATH_MAX {
        at.too_long(DOMAIN_MAX + 1 + PATH_MAX);
    }
}

fn pod_certificate(at: &At) {
    signer_name(&at.get("signerName"));
    let annotations = at.get("userAnnotations");
    annotations.with(|errors, path| validation::annotations(errors, path, Some(annotations.value)));
    at.get("keyType").one_of(&["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"]);
    let seconds = at.get("maxExpirationSeconds");
    let longest = if at.get("signerName").str().starts_with("kubernetes.io/") { 24 * 3600 } else { 91 * 24 * 3600 };
    if seconds.is_set() && seconds.int() < 3600 {
        seconds.invalid("if provided, maxExpirationSeconds must be >= 3600");
    }
    if seconds.int() > longest {
        seconds.invalid(format!("if provided, maxExpirationSeconds must be <= {longest}"));
    }
    let paths: Vec<At> = ["credentialBundlePath", "keyPath", "certificateChainPath"].iter().map(|key| at.get(key)).collect();
    paths.iter().filter(|p| !p.is_empty()).for_each(unreserved);
    if paths.iter().all(At::is_empty) {
        at.required("specify at least one of credentialBundlePath, keyPath, and certificateChainPath");
    }
}

fn iscsi(at: &At, holder: &At, name: Option<&str>) {
    let persistent = name.is_some();
    let (portal, iqn, initiator) = (at.get("targetPortal"), at.get("iqn"), at.get("initiatorName"));
    portal.must();
    const LONG: &str =
        "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
    if initiator.is_set() && name.is_some_and(|name| name.len() + 1 + portal.len() > 64) {
        portal.called(format!("{}.targetportal", at.path)).invalid(LONG);
    }
    let start = if persistent { "must be valid format" } else { "must be valid format starting with iqn, eui, or naa" };
    let check = |name: &At| match &name.str().get(..3) {
        Some("iqn" | "eui" | "naa") if !is_iscsi_name(name.str()) => name.invalid("must be valid format"),
        Some("iqn" | "eui" | "naa") => {}
        _ => name.invalid(start),
    };
    if iqn.must() {
        check(&iqn);
    }
    let lun = at.get("lun");
    if !(0..=255).contains(&lun.int()) {
        lun.invalid("must be between 0 and 255, inclusive");
    }
    let secret = at.get("secretRef");
    if (at.get("chapAuthDiscovery").flag() || at.get("chapAuthSession").flag()) && !secret.is_set() {
        secret.required("");
    }
    if persistent && secret.is_set() {
        secret.get("name").must();
    }
    if initiator.is_set() {
        check(&initiator.called(format!("{}.initiatorname", at.path)));
        let volume = holder.get("name");
        if !persistent && volume.len() + 1 + portal.len() > 64 {
            volume.invalid(LONG);
        }
    }
}

/// `iqn.2001-04.com.example:disk`, `eui.` and 16, `naa.` and 32 letters or digits.
fn is_iscsi_name(name: &str) -> bool {
    let plain = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some(rest) = name.strip_prefix("eui.") {
        return plain(rest, 16);
    }
    if let Some(rest) = name.strip_prefix("naa.") {
        return plain(rest, 32);
    }
    let Some(rest) = name.strip_prefix("iqn.") else { return false };
    let (head, tail) = rest.split_at(rest.len().min(8));
    let date: Vec<&str> = head.split('-').collect();
    let digits = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_digit());
    let dated = matches!(date[..], [year, month] if digits(year, 4) && month.ends_with('.') && digits(&month[..month.len() - 1], 2));
    let Some((authority, id)) = tail.split_once(':') else { return false };
    let authority_fine = !authority.is_empty() && authority.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    dated && authority_fine && !id.is_empty() && !id.contains(|c: char| "^,;*&$|".contains(c) || c.is_whitespace())
}

fn fc(at: &At) {
    let (names, ids, lun) = (at.get("targetWWNs"), at.get("wwids"), at.get("lun"));
    match (names.is_empty(), ids.is_empty()) {
        (true, true) => names.required("must specify either targetWWNs or wwids, but not both"),
        (false, false) => names.invalid("targetWWNs and wwids can not be specified simultaneously"),
        _ => {}
    }
    if !names.is_empty() {
        match lun.is_set() {
            false => lun.required("lun is required if targetWWNs is specified"),
            true => lun.between(0, 255),
        }
    }
}

fn quobyte(at: &At) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let (registry, tenant) = (at.get("registry"), at.get("tenant"));
    if registry.is_empty() {
        registry.required(PAIRS);
    } else if tenant.len() >= 65 {
        tenant.required("must be a UUID and may not exceed a length of 64 characters");
    } else {
        for pair in registry.str().split(',') {
            let bracketed = pair.starts_with('[') && pair.contains("]:");
            if !bracketed && pair.matches(':').count() != 1 {
                registry.invalid(PAIRS);
            }
        }
    }
    at.get("volume").must();
}

fn azure_disk(at: &At) {
    let (kind, uri) = (at.get("kind"), at.get("diskURI"));
    at.get("diskName").must();
    uri.must();
    at.get("cachingMode").maybe_one_of(&["None", "ReadOnly", "ReadWrite"]);
    kind.maybe_one_of(&["Dedicated", "Managed", "Shared"]);
    const MANAGED: &str = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    match kind.str() {
        "Managed" if !uri.str().starts_with("/subscriptions/") => uri.push(FieldError::not_supported(uri.path, uri.str(), &[MANAGED])),
        "Managed" => {}
        _ if kind.is_set() && !uri.str().starts_with("https://") => uri.push(FieldError::not_supported(uri.path, uri.str(), &[BLOB])),
        _ => {}
    }
}

/// A driver's name may have upper case letters, although nothing else about it may be odd.
pub fn csi_driver_name(name: &At) {
    if !name.must() {
        return;
    }
    if name.len() > 63 {
        name.too_long(63);
    }
    validation::subdomain(&name.str().to_lowercase()).into_iter().for_each(|m| name.invalid(m));
}

fn csi(at: &At, persistent: bool) {
    csi_driver_name(&at.get("driver"));
    if !persistent {
        let secret = at.get("nodePublishSecretRef");
        if secret.is_set() && secret.get("name").must() {
            secret.get("name").called(format!("{}.name", at.path)).ok(validation::subdomain);
        }
        return;
    }
    at.get("volumeHandle").must();
    for key in ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"] {
        let secret = at.get(key);
        if secret.is_set() {
            secret.get("name").must_be(validation::subdomain);
            secret.get("namespace").must_be(validation::label);
        }
    }
}

/// Texts for `Warning` headers about sources that are on their way out, or gone.
pub fn source_warnings(at: &str, holder: &Value) -> Vec<String> {
    const GONE: [(&str, &str, &str); 9] = [
        ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
        ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    GONE.iter().filter(|(source, _, _)| holder.at(&[source]).is_some()).map(|(_, called, why)| format!("{at}.{called}: {why}")).collect()
}

/// The same of a volume of the cluster.
fn volume_warnings(volume: &Value) -> Vec<String> {
    const ANNOTATIONS: [(&str, &str); 2] = [
        ("volume.beta.kubernetes.io/storage-class", "deprecated since v1.8; use \"storageClassName\" attribute instead"),
        ("volume.beta.kubernetes.io/mount-options", "deprecated since v1.31; use \"mountOptions\" attribute instead"),
    ];
    const WARNED_OF: [&str; 6] = ["cephfs", "photonPersistentDisk", "scaleIO", "storageOS", "glusterfs", "rbd"];
    let annotated = |key: &str| volume.at(&["metadata", "annotations", key]).is_some();
    let mut texts: Vec<String> =
        ANNOTATIONS.iter().filter(|(key, _)| annotated(key)).map(|(key, why)| format!("metadata.annotations[{key}]: {why}")).collect();
    if volume.str_at(&["spec", "persistentVolumeReclaimPolicy"]) == "Recycle" {
        let why = "The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.";
        texts.push(format!("spec.persistentVolumeReclaimPolicy: {why}"));
    }
    let sources = source_warnings("spec", volume.get("spec").unwrap_or(&Value::Null));
    let of = |source: &&str| sources.iter().find(|w| w.starts_with(&format!("spec.{source}:"))).cloned();
    texts.extend(WARNED_OF.iter().filter_map(of));
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iscsi_names() {
        for good in ["iqn.2001-04.com.example:storage.disk", "eui.0123456789abcdef", "naa.0123456789abcdef0123456789abcdef"] {
            assert!(is_iscsi_name(good), "{good}");
        }
        for bad in ["iqn.2001-04.com.example", "iqn.20010-4.a:b", "eui.0", "x"] {
            assert!(!is_iscsi_name(bad), "{bad}");
        }
    }
}
