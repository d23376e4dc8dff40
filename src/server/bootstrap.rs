//! Default objects.
