//! Resource and Strategy, paired: built-ins at start, custom resources while running.

use super::strategy::Selectable;
use crate::api::object::Object;

/// The text of a scalar field in stored bytes.
pub fn field_text(_object: &Object, _field: &Selectable) -> String {
    String::new()
}
