//! Pure: OpenAPI v3 from the schema table.
