//! The scheduler, a serial controller.
