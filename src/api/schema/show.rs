//! Values as upstream's messages print them, and how two of them differ.

use std::collections::HashMap;

use super::{Field, Kind, Shape, Type, TypeRef, object_meta};
use crate::api::json;
use crate::api::value::{Map, Value};

/// A value as upstream's messages print it. Strings are quoted. Types of the API groups are printed without JSON tags, as
/// upstream's internal ones have none: Go's names, in Go's order, nothing left out. Other types print as their JSON.
pub fn show(shape: Shape, value: &Value) -> String {
    match (shape, value) {
        (_, Value::Str(s)) => json::go_quote(s),
        (Shape::Field(Field { repeated: false, map: false, pointer: true, .. }), Value::Null) => "null".to_string(),
        _ => {
            let mut out = Vec::new();
            show_json(shape, value, &mut out);
            String::from_utf8_lossy(&out).into_owned()
        }
    }
}

fn show_json(shape: Shape, value: &Value, out: &mut Vec<u8>) {
    let field_zero = |field: &Field, out: &mut Vec<u8>| match field.kind {
        _ if !field.is_single() || field.pointer => out.extend_from_slice(b"null"),
        Kind::Message(ty) => show_struct(ty, &Map::new(), out),
        kind => json::write(&kind.zero(), out),
    };
    match (shape, value) {
        (Shape::Field(field), Value::Null) => field_zero(field, out),
        (Shape::One(Kind::Message(ty), false), Value::Null) => show_struct(ty, &Map::new(), out),
        (Shape::One(Kind::Message(ty), _), Value::Map(m)) => show_struct(ty, m, out),
        (Shape::Field(field), Value::Map(m)) if field.is_single() => match field.kind {
            Kind::Message(ty) => show_struct(ty, m, out),
            _ => json::write(value, out),
        },
        (Shape::Field(field), Value::List(items)) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                show_json(Shape::One(field.kind, false), item, out);
            }
            out.push(b']');
        }
        (Shape::Field(field), Value::Map(m)) => {
            out.push(b'{');
            for (i, (key, item)) in m.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                json::write_str(key, out);
                out.push(b':');
                show_json(Shape::One(field.kind, false), item, out);
            }
            out.push(b'}');
        }
        _ => json::write(value, out),
    }
}

fn show_struct(ty: TypeRef, members: &Map, out: &mut Vec<u8>) {
    out.push(b'{');
    show_members(ty, members, &mut true, out);
    out.push(b'}');
}

fn show_members(ty: TypeRef, members: &Map, first: &mut bool, out: &mut Vec<u8>) {
    let ty = ty.get();
    let has_tags = ty.name.starts_with("io.k8s.apimachinery.");
    for field in in_order(ty) {
        if ty.name == POD_SPEC && field.json_name == "securityContext" {
            separate(first, out);
            out.extend_from_slice(b"\"SecurityContext\":{");
            let mut inner = true;
            HOST_FIELDS.iter().filter_map(|name| ty.field(name)).for_each(|f| show_member(f, members, false, &mut inner, out));
            let context = members.get("securityContext").and_then(Value::as_map).unwrap_or(&Map::new()).clone();
            if let Some(own) = field.message() {
                show_members(own, &context, &mut inner, out);
            }
            out.push(b'}');
            continue;
        }
        let value = members.get(field.json_name).unwrap_or(&Value::Null);
        if !has_tags && field.kind == Kind::Message(object_meta()) && field.is_single() {
            // Internal types embed their metadata.
            show_members(object_meta(), value.as_map().unwrap_or(&Map::new()), first, out);
            continue;
        }
        // The internal form of an object has no kind of its own.
        if !has_tags && !ty.kinds.is_empty() && matches!(field.json_name, "apiVersion" | "kind") {
            continue;
        }
        if has_tags && !field.always && (value.is_null() || field.omits(value)) {
            continue;
        }
        show_member(field, members, has_tags, first, out);
    }
}

fn separate(first: &mut bool, out: &mut Vec<u8>) {
    if !*first {
        out.push(b',');
    }
    *first = false;
}

fn show_member(field: &'static Field, members: &Map, has_tags: bool, first: &mut bool, out: &mut Vec<u8>) {
    separate(first, out);
    let name = if has_tags { field.json_name.to_string() } else { go_field_name(field.json_name) };
    json::write_str(&name, out);
    out.push(b':');
    show_json(Shape::Field(field), members.get(field.json_name).unwrap_or(&Value::Null), out);
}

const POD_SPEC: &str = "io.k8s.api.core.v1.PodSpec";
/// Members of a pod's spec that upstream keeps in its security context.
const HOST_FIELDS: [&str; 5] = ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"];

/// Types whose internal form has its members in an order of its own.
const ORDERS: [(&str, &str); 4] = [
    (
        POD_SPEC,
        "volumes initContainers containers ephemeralContainers restartPolicy terminationGracePeriodSeconds activeDeadlineSeconds \
         dnsPolicy nodeSelector serviceAccountName automountServiceAccountToken nodeName securityContext imagePullSecrets hostname \
         subdomain setHostnameAsFQDN affinity schedulerName tolerations hostAliases priorityClassName priority preemptionPolicy \
         dnsConfig readinessGates runtimeClassName overhead enableServiceLinks topologySpreadConstraints os schedulingGates \
         resourceClaims resources hostnameOverride schedulingGroup",
    ),
    (
        "io.k8s.api.core.v1.PodSecurityContext",
        "seLinuxOptions windowsOptions runAsUser runAsGroup runAsNonRoot supplementalGroups supplementalGroupsPolicy fsGroup \
         fsGroupChangePolicy sysctls seccompProfile appArmorProfile seLinuxChangePolicy",
    ),
    (
        "io.k8s.api.core.v1.Volume",
        "name hostPath emptyDir gcePersistentDisk awsElasticBlockStore gitRepo secret nfs iscsi glusterfs persistentVolumeClaim rbd \
         quobyte flexVolume cinder cephfs flocker downwardAPI fc azureFile configMap vsphereVolume azureDisk photonPersistentDisk \
         projected portworxVolume scaleIO storageos csi ephemeral image",
    ),
    (
        "io.k8s.api.core.v1.PersistentVolumeSpec",
        "capacity gcePersistentDisk awsElasticBlockStore hostPath glusterfs nfs rbd quobyte iscsi flexVolume cinder cephfs fc flocker \
         azureFile vsphereVolume azureDisk photonPersistentDisk portworxVolume scaleIO local storageos csi accessModes claimRef \
         persistentVolumeReclaimPolicy storageClassName mountOptions volumeMode nodeAffinity volumeAttributesClassName",
    ),
];

fn in_order(ty: &'static Type) -> Vec<&'static Field> {
    match ORDERS.iter().find(|(name, _)| *name == ty.name) {
        Some((_, order)) => order.split_ascii_whitespace().filter_map(|name| ty.field(name)).collect(),
        None => ty.declared.iter().map(|i| &ty.fields[usize::from(*i)]).collect(),
    }
}

/// Go's name of the field behind a JSON name.
fn go_field_name(json_name: &str) -> String {
    const INITIALS: &[&str] = &[
        "api", "uid", "uri", "url", "ip", "id", "fs", "os", "tty", "csi", "ca", "cidr", "iqn", "pd", "wwid", "nfs", "rbd", "fc", "gce",
        "aws", "dns",
    ];
    match json_name {
        "cephfs" => return "CephFS".to_string(),
        "storageos" => return "StorageOS".to_string(),
        "iscsi" => return "ISCSI".to_string(),
        _ => {}
    }
    if let Some(rest) = json_name.strip_prefix("seLinux") {
        return format!("SELinux{rest}");
    }
    let word = json_name.bytes().take_while(|b| b.is_ascii_lowercase()).count();
    let (head, rest) = json_name.split_at(word);
    let (stem, plural) =
        head.strip_suffix('s').filter(|h| !INITIALS.contains(&head) && INITIALS.contains(h)).map_or((head, ""), |h| (h, "s"));
    if INITIALS.contains(&stem) {
        return format!("{}{plural}{rest}", stem.to_uppercase());
    }
    let mut chars = json_name.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}

/// How two structs of a type differ, as upstream's messages say it: a unified diff of their internal forms in pretty JSON.
/// With `only`, of the members named.
pub fn diff(ty: TypeRef, old: &Value, new: &Value, only: Option<&[&str]>) -> String {
    let empty = Map::new();
    let lines = |value: &Value| {
        let mut out = vec![b'{'];
        let members = value.as_map().unwrap_or(&empty);
        match only {
            None => show_members(ty, members, &mut true, &mut out),
            Some(names) => {
                let mut first = true;
                let fields = in_order(ty.get()).into_iter().filter(|f| names.contains(&f.json_name));
                fields.for_each(|f| show_member(f, members, false, &mut first, &mut out));
            }
        }
        out.push(b'}');
        pretty(&String::from_utf8_lossy(&out))
    };
    unified(&lines(old), &lines(new))
}

/// The lines of compact JSON indented by one space a level.
fn pretty(json: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut depth = 0;
    let (mut in_string, mut escaped) = (false, false);
    let mut chars = json.chars().peekable();
    while let Some(c) = chars.next() {
        if !in_string && matches!(c, '}' | ']') {
            depth -= 1;
            lines.push(" ".repeat(depth));
        }
        lines.last_mut().expect("never empty").push(c);
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' => in_string = true,
            '{' | '[' => match chars.peek() {
                Some(close @ ('}' | ']')) => {
                    lines.last_mut().expect("never empty").push(*close);
                    chars.next();
                }
                _ => {
                    depth += 1;
                    lines.push(" ".repeat(depth));
                }
            },
            ',' => lines.push(" ".repeat(depth)),
            ':' => lines.last_mut().expect("never empty").push(' '),
            _ => {}
        }
    }
    lines
}

const CONTEXT: usize = 3;
/// Pairs of lines looked at at most; beyond that all in between counts as changed.
const STEPS_MAX: usize = 4_000_000;

/// A unified diff without file names.
fn unified(old: &[String], new: &[String]) -> String {
    let pairs = matches(old, new);
    // Runs of change between matching lines: (old, new) from and to.
    let mut changes: Vec<(usize, usize, usize, usize)> = Vec::new();
    let (mut o, mut n) = (0, 0);
    for (i, j) in pairs.into_iter().chain([(old.len(), new.len())]) {
        if (o, n) != (i, j) {
            changes.push((o, i, n, j));
        }
        (o, n) = (i + 1, j + 1);
    }
    let mut out = String::new();
    let mut rest = changes.as_slice();
    while let Some(first) = rest.first() {
        let together = rest.windows(2).take_while(|w| w[1].0 - w[0].1 <= 2 * CONTEXT).count() + 1;
        let (hunk, later) = rest.split_at(together);
        rest = later;
        let before = CONTEXT.min(first.0).min(first.2);
        let last = hunk[hunk.len() - 1];
        let after = CONTEXT.min(old.len() - last.1);
        let range = |from: usize, to: usize| match to - from {
            1 => format!("{}", from + 1),
            0 => format!("{from},0"),
            length => format!("{},{length}", from + 1),
        };
        out.push_str(&format!("@@ -{} +{} @@\n", range(first.0 - before, last.1 + after), range(first.2 - before, last.3 + after)));
        let mut line = |mark: char, text: &str| out.push_str(&format!("{mark}{text}\n"));
        let mut at = first.0 - before;
        for (from, to, into, until) in hunk {
            old[at..*from].iter().for_each(|l| line(' ', l));
            old[*from..*to].iter().for_each(|l| line('-', l));
            new[*into..*until].iter().for_each(|l| line('+', l));
            at = *to;
        }
        old[at..last.1 + after].iter().for_each(|l| line(' ', l));
    }
    out
}

/// Indices of lines that match, as Python's `difflib` and those that took after it find them: the longest block both have, then the same
/// to its left and right. That is not always the most that could match, and upstream's texts show it.
fn matches(old: &[String], new: &[String]) -> Vec<(usize, usize)> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (j, line) in new.iter().enumerate() {
        places.entry(line).or_default().push(j);
    }
    // In long texts, lines that are everywhere say nothing about where we are.
    if new.len() >= 200 {
        places.retain(|_, at| at.len() <= new.len() / 100 + 1);
    }
    let mut pairs = Vec::new();
    let mut steps = 0;
    let mut rest = vec![(0, old.len(), 0, new.len())];
    while let Some((from, to, into, until)) = rest.pop() {
        let (i, j, length) = longest_block(old, new, &places, (from, to, into, until), &mut steps);
        if length > 0 && steps < STEPS_MAX {
            pairs.extend((0..length).map(|k| (i + k, j + k)));
            rest.push((from, i, into, j));
            rest.push((i + length, to, j + length, until));
        }
    }
    pairs.sort_unstable();
    pairs
}

/// The first of the longest blocks of equal lines between `old[from..to]` and `new[into..until]`: where it is in both, and how long.
fn longest_block(
    old: &[String],
    new: &[String],
    places: &HashMap<&str, Vec<usize>>,
    (from, to, into, until): (usize, usize, usize, usize),
    steps: &mut usize,
) -> (usize, usize, usize) {
    let (mut i, mut j, mut length) = (from, into, 0);
    // How long the block is that ends before a line of the new text.
    let mut ending: HashMap<usize, usize> = HashMap::new();
    for (at, line) in old.iter().enumerate().take(to).skip(from) {
        let mut next = HashMap::new();
        for place in places.get(line.as_str()).into_iter().flatten().copied().filter(|p| (into..until).contains(p)) {
            let long = ending.get(&place).copied().unwrap_or(0) + 1;
            next.insert(place + 1, long);
            *steps += 1;
            if long > length {
                (i, j, length) = (at + 1 - long, place + 1 - long, long);
            }
        }
        ending = next;
    }
    while i > from && j > into && old[i - 1] == new[j - 1] {
        (i, j, length) = (i - 1, j - 1, length + 1);
    }
    while i + length < to && j + length < until && old[i + length] == new[j + length] {
        length += 1;
    }
    (i, j, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::type_named;
    use crate::value;

    #[test]
    fn the_longest_block_wins() {
        let lines = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        let of = |a: &str, b: &str| unified(&lines(a), &lines(b)).replace('\n', " ");
        // What is put before another of its kind begins with the bracket, not after the one that was there.
        assert_eq!(of("[{a}]", "[{b}{a}]"), "@@ -1,4 +1,7 @@  [ +{ +b +}  {  a  } ");
        assert_eq!(of("abc", "abc"), "");
        assert_eq!(of("abxcd", "abcd"), "@@ -1,5 +1,4 @@  a  b -x  c  d ");
    }

    #[test]
    fn differences_are_told_in_lines() {
        let ty = type_named("io.k8s.api.core.v1.PersistentVolumeClaimSpec").unwrap();
        let old = value!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"});
        let new = value!({"accessModes": ["ReadWriteOnce", "x"], "volumeMode": "Filesystem"});
        let want = "@@ -1,6 +1,7 @@\n {\n  \"AccessModes\": [\n-  \"ReadWriteOnce\"\n+  \"ReadWriteOnce\",\n+  \"x\"\n  ],\n  \"Selector\": null,\n  \"Resources\": {\n";
        assert_eq!(diff(ty, &old, &new, None), want);
        let source: &[&str] = &["hostPath"];
        let pv = type_named("io.k8s.api.core.v1.PersistentVolumeSpec").unwrap();
        let (old, new) = (value!({"hostPath": {"path": "/a", "type": ""}}), value!({"hostPath": {"path": "/b", "type": ""}}));
        let want = "@@ -1,6 +1,6 @@\n {\n  \"HostPath\": {\n-  \"Path\": \"/a\",\n+  \"Path\": \"/b\",\n   \"Type\": \"\"\n  }\n }\n";
        assert_eq!(diff(pv, &old, &new, Some(source)), want);
    }
}
