//! The one integration-test binary: every other file here is a module of it (`tidy` checks that none is forgotten).

mod codec;

mod store;

mod runtime;

mod net;

mod api;

mod sim;

mod tidy;
