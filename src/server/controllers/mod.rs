//! The table of controllers.
