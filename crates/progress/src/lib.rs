//! Typed build events and the handle to send them
