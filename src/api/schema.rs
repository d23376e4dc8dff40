//! Pure: the schema table: every type of the API with its fields, as facts.
//!
//! One table drives strict decoding, both encodings, pruning, merge patches, apply and OpenAPI (DESIGN decision 1). The
//! rows come from `facts/types.tsv` through `build.rs` and are indexed on first use, in well under a millisecond.
//! Fields of embedded structs appear among the fields of the type that embeds them, as they do in JSON; [`Type::wire`]
//! keeps the nesting protobuf has. Start at [`type_of`].

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use super::value::{Map, Value};

mod show;

pub use show::{diff, show};

/// A type of the table. Cheap to copy and compare.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeRef(u16);

/// One type.
#[derive(Debug)]
pub struct Type {
    /// The OpenAPI model name: `io.k8s.api.core.v1.Container`.
    pub name: &'static str,
    /// Its name in upstream's messages: `Container`.
    pub go_name: &'static str,
    /// `apiVersion` and `kind` under which it is served, if it is.
    pub kinds: Vec<(&'static str, &'static str)>,
    /// Apply treats the whole object as one value.
    pub map_atomic: bool,
    /// JSON text of what OpenAPI publishes of its unions; empty if it has none.
    pub unions: &'static str,
    /// Sorted by JSON name, embedded structs flattened.
    pub fields: Vec<Field>,
    /// Indices into `fields` in the order upstream declares them.
    pub declared: Vec<u16>,
    /// The protobuf layout, by number.
    pub wire: Vec<Wire>,
    /// Indices into `fields` of those JSON always shows, zero or not.
    pub always: Vec<u16>,
}

/// One step of a protobuf layout.
#[derive(Debug)]
pub enum Wire {
    /// Index into [`Type::fields`].
    Field(u32, u16),
    /// An embedded struct: a message in protobuf, nothing in JSON.
    Inline(u32, Vec<Wire>),
}

/// One field of a type.
#[derive(Debug)]
pub struct Field {
    pub json_name: &'static str,
    /// The name as FieldsV1 has it: `f:name`.
    pub step: &'static str,
    /// Protobuf number within the message that holds it; 0 if it has none.
    pub number: u32,
    /// What one element is: of a list if `repeated`, of a map's values if `map`.
    pub kind: Kind,
    pub repeated: bool,
    pub map: bool,
    pub pointer: bool,
    pub omitempty: bool,
    pub omitzero: bool,
    /// JSON shows it even when it is zero.
    pub always: bool,
    /// OpenAPI says that it must be there.
    pub required: bool,
    pub list_type: ListType,
    pub list_map_keys: Vec<&'static str>,
    /// Empty if there is none.
    pub patch_merge_key: &'static str,
    /// `merge`, `replace`, `retainKeys`, `merge,retainKeys` or empty.
    pub patch_strategy: &'static str,
    /// Whether apply treats the map or struct in this field as one value; a struct's own type says so where this does not.
    pub map_type: MapType,
    /// JSON text of the default OpenAPI publishes (mostly zero values); empty if there is none.
    pub default: &'static str,
    pub enum_values: Vec<&'static str>,
    /// As upstream's messages name it: `[]v1.Container`.
    pub go_type: &'static str,
    /// Go names of the embedded structs around it, outermost first.
    pub embedded_in: Vec<&'static str>,
    /// `apiVersion` and `kind` its objects show although they are not stored (volume claim templates do).
    pub implied: Option<(&'static str, &'static str)>,
}

/// What a value is, apart from being in a list or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int32,
    Int64,
    Float64,
    String,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// An object of any kind, as JSON (protobuf holds its bytes).
    RawExtension,
    FieldsV1,
    /// Any JSON.
    Json,
    /// Any JSON; has no protobuf form.
    Any,
    /// A list of strings that is a message of its own in protobuf.
    Strings,
    /// A schema or a boolean, a schema or a list of them, a schema or a list of strings.
    SchemaOrBool,
    SchemaOrArray,
    SchemaOrStrings,
    Message(TypeRef),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// Not said: atomic to apply.
    Unset,
    Atomic,
    Set,
    Map,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    Unset,
    Atomic,
    Granular,
}

struct Table {
    types: Vec<Type>,
    by_name: HashMap<&'static str, TypeRef>,
    /// By group, version, kind.
    by_kind: HashMap<(&'static str, &'static str, &'static str), TypeRef>,
    schema_props: TypeRef,
    object_meta: TypeRef,
    group_versions: Vec<&'static str>,
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::load);

/// The type of an object's `apiVersion` and `kind`. The kinds every group version knows (`DeleteOptions`, `ListOptions`,
/// `WatchEvent`, …) are found under any.
pub fn type_of(api_version: &str, kind: &str) -> Option<TypeRef> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    type_of_gvk(group, version, kind)
}

/// [`type_of`] with group and version apart.
pub fn type_of_gvk(group: &str, version: &str, kind: &str) -> Option<TypeRef> {
    let found = TABLE.by_kind.get(&(group, version, kind)).copied();
    let everywhere =
        || ["CreateOptions", "DeleteOptions", "GetOptions", "ListOptions", "PatchOptions", "UpdateOptions", "WatchEvent"].contains(&kind);
    found.or_else(|| if everywhere() { TABLE.by_kind.get(&("", "v1", kind)).copied() } else { None })
}

/// `metav1.ObjectMeta`.
pub fn object_meta() -> TypeRef {
    TABLE.object_meta
}

/// Every group version upstream knows, served or not, sorted.
pub fn group_versions() -> &'static [&'static str] {
    &TABLE.group_versions
}

/// The type with this OpenAPI model name.
pub fn type_named(name: &str) -> Option<TypeRef> {
    TABLE.by_name.get(name).copied()
}

/// Every type, sorted by name.
pub fn all() -> impl Iterator<Item = TypeRef> {
    (0..TABLE.types.len() as u16).map(TypeRef)
}

/// `JSONSchemaProps`, which the `SchemaOr…` kinds are about.
pub fn schema_props() -> TypeRef {
    TABLE.schema_props
}

impl TypeRef {
    pub fn get(self) -> &'static Type {
        &TABLE.types[usize::from(self.0)]
    }

    pub fn name(self) -> &'static str {
        self.get().name
    }

    /// Sorted by JSON name.
    pub fn fields(self) -> std::slice::Iter<'static, Field> {
        self.get().fields.iter()
    }

    pub fn field(self, json_name: &str) -> Option<&'static Field> {
        self.get().field(json_name)
    }
}

impl Type {
    pub fn field(&self, json_name: &str) -> Option<&Field> {
        self.index(json_name).map(|i| &self.fields[usize::from(i)])
    }

    /// The index of a field, as [`Slots::slot`] and [`Wire::Field`] use it.
    pub fn index(&self, json_name: &str) -> Option<u16> {
        self.fields.binary_search_by(|f| f.json_name.cmp(json_name)).ok().map(|i| i as u16)
    }
}

/// The values of one struct by field index, on the way to becoming a map under Go's rules.
pub struct Slots {
    ty: &'static Type,
    values: Vec<Option<Value>>,
}

impl Slots {
    pub fn new(ty: TypeRef) -> Slots {
        let ty = ty.get();
        let mut values = Vec::new();
        values.resize_with(ty.fields.len(), || None);
        Slots { ty, values }
    }

    pub fn slot(&mut self, field: u16) -> &mut Option<Value> {
        &mut self.values[usize::from(field)]
    }

    /// What Go prints of the struct: zero values dropped or shown as each field says.
    pub fn finish(self) -> Map {
        let mut entries = Vec::with_capacity(self.values.iter().filter(|v| v.is_some()).count() + self.ty.always.len());
        for (field, value) in self.ty.fields.iter().zip(self.values) {
            let shown = match value {
                Some(value) if !value.is_null() && (field.always || !field.omits(&value)) => Some(value),
                _ if field.always => Some(field.zero()),
                _ => None,
            };
            if let Some(mut value) = shown {
                if let (Some((api_version, kind)), Value::List(items)) = (field.implied, &mut value) {
                    for item in items.iter_mut() {
                        item.set(&["apiVersion"], api_version);
                        item.set(&["kind"], kind);
                    }
                }
                entries.push((field.json_name.into(), value));
            }
        }
        Map::from_sorted(entries)
    }
}

/// What Go prints of the zero value of a type: `{}` or what it always shows.
pub fn zero_struct(ty: TypeRef) -> Map {
    let ty = ty.get();
    let shown = ty.always.iter().map(|i| &ty.fields[usize::from(*i)]);
    Map::from_sorted(shown.map(|f| (f.json_name.into(), f.zero())).collect())
}

impl Kind {
    /// Go's zero value of one element.
    pub fn zero(self) -> Value {
        match self {
            Kind::Bool | Kind::SchemaOrBool => Value::Bool(false),
            Kind::Int32 | Kind::Int64 | Kind::IntOrString => Value::Int(0),
            Kind::Float64 => Value::Float(0.0),
            Kind::String => Value::Str(String::new()),
            Kind::Quantity => Value::Str("0".to_string()),
            Kind::Message(t) => Value::Map(zero_struct(t)),
            Kind::Bytes | Kind::Time | Kind::MicroTime | Kind::RawExtension | Kind::FieldsV1 | Kind::Json => Value::Null,
            Kind::Any | Kind::Strings | Kind::SchemaOrArray | Kind::SchemaOrStrings => Value::Null,
        }
    }
}

impl Field {
    /// Go's zero value of the field.
    pub fn zero(&self) -> Value {
        if self.pointer || !self.is_single() { Value::Null } else { self.kind.zero() }
    }

    /// `value` is what omitempty leaves out of a field of this kind.
    fn omits(&self, value: &Value) -> bool {
        match value {
            // An empty list of managed fields says something absence does not: forget them.
            Value::List(_) if self.json_name == "managedFields" => false,
            Value::List(items) => !self.pointer && items.is_empty() && (self.repeated || self.kind == Kind::Strings),
            Value::Map(entries) => !self.pointer && self.map && entries.is_empty(),
            _ if self.pointer => false,
            Value::Bool(b) => !b && self.kind == Kind::Bool,
            Value::Int(i) => *i == 0 && matches!(self.kind, Kind::Int32 | Kind::Int64),
            Value::Float(f) => *f == 0.0,
            Value::Str(s) => s.is_empty() && matches!(self.kind, Kind::String | Kind::Bytes),
            Value::Null => true,
        }
    }

    /// JSON shows it even when it is zero.
    fn is_always_shown(&self) -> bool {
        let is_struct =
            matches!(self.kind, Kind::Message(_) | Kind::Time | Kind::MicroTime | Kind::Quantity | Kind::IntOrString | Kind::RawExtension)
                || matches!(self.kind, Kind::FieldsV1 | Kind::Json | Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStrings);
        // Go's omitempty does nothing for structs.
        let omits = self.omitempty && (self.pointer || self.repeated || self.map || !is_struct);
        !omits && !self.omitzero
    }

    /// The type of its message values.
    pub fn message(&self) -> Option<TypeRef> {
        match self.kind {
            Kind::Message(t) => Some(t),
            _ => None,
        }
    }

    /// One value, neither list nor map.
    pub fn is_single(&self) -> bool {
        !self.repeated && !self.map
    }

    /// Go's name of one element's type.
    pub fn element_go_type(&self) -> &'static str {
        match (self.repeated, self.map) {
            (true, _) => self.go_type.strip_prefix("[]").unwrap_or_else(|| self.go_element()),
            (_, true) => self.go_type.split_once(']').map_or_else(|| self.go_element(), |(_, element)| element),
            _ => self.go_type,
        }
    }

    /// Of a named list or map type, whose name hides the element.
    fn go_element(&self) -> &'static str {
        match self.kind {
            Kind::Quantity => "resource.Quantity",
            Kind::Message(t) => t.get().go_name,
            _ => "string",
        }
    }

    /// A map of resource amounts, which upstream rounds up to thousandths wherever it appears.
    pub fn is_resource_list(&self) -> bool {
        self.map && self.go_type == "v1.ResourceList"
    }
}

/// What the table knows about a place in an object.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// One value of this kind, and whether Go holds a pointer to it.
    One(Kind, bool),
    /// A field, list or map included.
    Field(&'static Field),
    /// Nothing.
    Unknown,
}

impl Shape {
    pub fn of(ty: TypeRef) -> Shape {
        Shape::One(Kind::Message(ty), false)
    }

    /// The shape of a member.
    pub fn member(self, json_name: &str) -> Shape {
        let ty = match self {
            Shape::One(Kind::Message(ty), _) => ty,
            Shape::Field(Field { kind: Kind::Message(ty), repeated: false, map: false, .. }) => *ty,
            _ => return Shape::Unknown,
        };
        ty.get().index(json_name).map_or(Shape::Unknown, |i| Shape::Field(&ty.get().fields[usize::from(i)]))
    }

    /// The shape of an item of a list or an entry of a map.
    pub fn element(self) -> Shape {
        match self {
            Shape::Field(field) if field.repeated || field.map => Shape::One(field.kind, false),
            Shape::Field(Field { kind: Kind::Strings, .. }) => Shape::One(Kind::String, false),
            _ => Shape::Unknown,
        }
    }
}

impl fmt::Debug for TypeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A row as written: an embedded struct is still a field.
struct Row {
    field: Field,
    inline: bool,
}

impl Table {
    fn load() -> Table {
        let mut heads: Vec<Type> = Vec::new();
        let mut rows: Vec<Vec<Row>> = Vec::new();
        let mut group_versions = Vec::new();
        for line in include_str!(concat!(env!("OUT_DIR"), "/types.txt")).lines() {
            let mut cells = line.split('\t');
            let mut next = || cells.next().unwrap_or("");
            match next() {
                "G" => group_versions = next().split('|').collect(),
                "T" => {
                    let (name, go_name, kinds, map_type, unions) = (next(), next(), next(), next(), next());
                    let kinds = kinds.split('|').filter_map(|k| k.split_once(' ')).collect();
                    let (fields, declared, wire, always) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
                    heads.push(Type { name, go_name, kinds, map_atomic: map_type == "atomic", unions, fields, declared, wire, always });
                    rows.push(Vec::new());
                }
                _ => rows.last_mut().expect("a type row comes first").push(Row::read(next)),
            }
        }
        for (i, head) in heads.iter_mut().enumerate() {
            flatten(i, &rows, &[], &mut head.fields, &mut head.wire);
            head.sort();
        }
        let refs = || (0..heads.len() as u16).map(TypeRef).zip(&heads);
        let by_name: HashMap<_, _> = refs().map(|(r, t)| (t.name, r)).collect();
        let split = |api_version: &'static str| api_version.split_once('/').unwrap_or(("", api_version));
        let by_kind = refs().flat_map(|(r, t)| t.kinds.iter().map(move |(v, kind)| ((split(v).0, split(v).1, *kind), r))).collect();
        // The core group, without a name, comes first.
        group_versions.sort_by_key(|v| split(v));
        let props = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        let object_meta = by_name["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"];
        Table { schema_props: by_name[props], object_meta, group_versions, by_name, by_kind, types: heads }
    }
}

/// Appends the fields of type `i`, those of embedded structs included, with wire steps that refer to them.
fn flatten(i: usize, rows: &[Vec<Row>], embedded_in: &[&'static str], fields: &mut Vec<Field>, wire: &mut Vec<Wire>) {
    for row in &rows[i] {
        match row.field.kind {
            Kind::Message(inner) if row.inline => {
                let path: Vec<&'static str> = embedded_in.iter().copied().chain([row.field.json_name]).collect();
                let mut steps = Vec::new();
                let from = fields.len();
                flatten(inner.0.into(), rows, &path, fields, &mut steps);
                match row.field.number {
                    // The type's own apiVersion and kind are in the envelope, not in the message.
                    0 => fields[from..].iter_mut().for_each(|f| f.number = 0),
                    number => wire.push(Wire::Inline(number, steps)),
                }
            }
            _ => {
                if row.field.number > 0 {
                    wire.push(Wire::Field(row.field.number, fields.len() as u16));
                }
                fields.push(row.field.copy(embedded_in));
            }
        }
    }
}

impl Type {
    /// Brings fields into name order and wire steps into number order.
    fn sort(&mut self) {
        let mut order: Vec<usize> = (0..self.fields.len()).collect();
        order.sort_by_key(|i| self.fields[*i].json_name);
        let mut place = vec![0u16; order.len()];
        for (new, old) in order.iter().enumerate() {
            place[*old] = new as u16;
        }
        fn renumber(wire: &mut [Wire], place: &[u16]) {
            for step in wire.iter_mut() {
                match step {
                    Wire::Field(_, i) => *i = place[usize::from(*i)],
                    Wire::Inline(_, inner) => renumber(inner, place),
                }
            }
            wire.sort_by_key(Wire::number);
        }
        renumber(&mut self.wire, &place);
        self.declared = place;
        self.fields.sort_by_key(|f| f.json_name);
        self.always = (0..self.fields.len() as u16).filter(|i| self.fields[usize::from(*i)].always).collect();
    }
}

impl Wire {
    pub fn number(&self) -> u32 {
        match self {
            Wire::Field(n, _) | Wire::Inline(n, _) => *n,
        }
    }
}

impl Field {
    fn copy(&self, embedded_in: &[&'static str]) -> Field {
        let (list_map_keys, enum_values) = (self.list_map_keys.clone(), self.enum_values.clone());
        Field { list_map_keys, enum_values, embedded_in: embedded_in.to_vec(), ..*self }
    }
}

impl Row {
    fn read(mut next: impl FnMut() -> &'static str) -> Row {
        let step = next();
        let json_name = step.strip_prefix("f:").expect("packed names are steps");
        let number = next().parse().expect("protobuf numbers are numbers");
        let shape = next();
        let (repeated, map) = (shape.starts_with("[]"), shape.starts_with("{}"));
        let kind = kind(if repeated || map { &shape[2..] } else { shape });
        let (go_type, flags, list_type, keys) = (next(), next(), next(), next());
        let (patch_merge_key, patch_strategy, map_type, default, values) = (next(), next(), next(), next(), next());
        let list_type = match list_type {
            "atomic" => ListType::Atomic,
            "set" => ListType::Set,
            "map" => ListType::Map,
            _ => ListType::Unset,
        };
        let split = |text: &'static str, at: char| text.split(at).filter(|s| !s.is_empty()).collect();
        let mut field = Field {
            json_name,
            step,
            number,
            kind,
            repeated,
            map,
            pointer: flags.contains('p'),
            omitempty: flags.contains('o'),
            omitzero: flags.contains('z'),
            always: false,
            required: flags.contains('r'),
            list_type,
            list_map_keys: split(keys, ','),
            patch_merge_key,
            patch_strategy,
            map_type: match map_type {
                "atomic" => MapType::Atomic,
                "granular" => MapType::Granular,
                _ => MapType::Unset,
            },
            default,
            enum_values: if values.is_empty() { Vec::new() } else { values.split('|').collect() },
            go_type,
            embedded_in: Vec::new(),
            implied: (json_name == "volumeClaimTemplates").then_some(("v1", "PersistentVolumeClaim")),
        };
        field.always = field.is_always_shown();
        Row { field, inline: flags.contains('i') }
    }
}

fn kind(token: &'static str) -> Kind {
    match token {
        "bool" => Kind::Bool,
        "int32" => Kind::Int32,
        "int64" => Kind::Int64,
        "float64" => Kind::Float64,
        "string" => Kind::String,
        "bytes" => Kind::Bytes,
        "time" => Kind::Time,
        "microtime" => Kind::MicroTime,
        "quantity" => Kind::Quantity,
        "intorstring" => Kind::IntOrString,
        "raw" => Kind::RawExtension,
        "fieldsv1" => Kind::FieldsV1,
        "json" => Kind::Json,
        "any" | "[]any" => Kind::Any,
        "strings" => Kind::Strings,
        "orbool" => Kind::SchemaOrBool,
        "orarray" => Kind::SchemaOrArray,
        "orstrings" => Kind::SchemaOrStrings,
        // Lists in maps and maps in maps exist only in JSON-only kinds; they are carried as any JSON.
        other => match other.strip_prefix('=').and_then(|n| n.parse().ok()) {
            Some(n) => Kind::Message(TypeRef(n)),
            None => panic!("types.tsv has a kind {other:?} this program does not know"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_structs_are_flat_in_json_and_nested_on_the_wire() {
        let t = type_named("io.k8s.api.admissionregistration.v1.NamedRuleWithOperations").unwrap();
        let groups = t.field("apiGroups").unwrap();
        assert_eq!(groups.embedded_in, ["RuleWithOperations", "Rule"]);
        assert!(matches!(&t.get().wire[..], [Wire::Field(1, _), Wire::Inline(2, _)]));
    }

    #[test]
    fn facts_of_a_pod() {
        let pod = type_of("v1", "Pod").unwrap();
        assert!(pod.get().always.iter().any(|i| pod.get().fields[usize::from(*i)].json_name == "status"));
        let Kind::Message(spec) = pod.field("spec").unwrap().kind else { panic!() };
        let containers = spec.field("containers").unwrap();
        assert_eq!((containers.number, containers.repeated, containers.list_type), (2, true, ListType::Map));
        assert_eq!(containers.list_map_keys, ["name"]);
        assert_eq!(spec.field("volumes").unwrap().patch_strategy, "merge,retainKeys");
        assert!(spec.field("terminationGracePeriodSeconds").unwrap().pointer);
        assert!(spec.field("apiVersion").is_none() && pod.field("apiVersion").is_some());
    }

    #[test]
    fn every_served_kind_and_its_list_have_a_type() {
        for r in crate::api::resource::ALL {
            let find = |kind: &str| type_of(&r.api_version(), kind);
            assert!(find(r.kind).is_some(), "{} {}", r.api_version(), r.kind);
            assert!(!r.verbs.contains(&"list") || find(&r.list_kind()).is_some(), "{}", r.list_kind());
            for s in r.subresources {
                assert!(type_of(&crate::api::resource::api_version(s.group, s.version), s.kind).is_some(), "{}", s.kind);
            }
        }
        assert_eq!(type_of("apps/v1", "DeleteOptions"), type_of("v1", "DeleteOptions"));
    }

    #[test]
    fn names_are_unique_within_a_type() {
        for t in all() {
            assert!(t.get().fields.windows(2).all(|w| w[0].json_name < w[1].json_name), "{t:?}");
            assert!(t.get().wire.windows(2).all(|w| w[0].number() < w[1].number()), "{t:?}");
        }
    }
}
