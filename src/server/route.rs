//! Pure: method, path and query to Request.
