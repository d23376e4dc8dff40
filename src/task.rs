//! Named tasks, cancellation, shutdown.
