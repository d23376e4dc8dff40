//! Pure: JSON and YAML bytes to tree and back, strict, from the field table.
