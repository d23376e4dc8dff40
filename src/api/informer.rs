//! List and watch as one stream of changes.
