//! Pure: protobuf bytes to tree and back, canonical, from the field table.
